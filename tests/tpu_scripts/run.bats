#!/usr/bin/env bats
# run.sh, status.sh and logs.sh, on workers that really run the commands.

load common

@test "the program starts on all workers with the same command" {
  ready_slice v6e-16 1 2
  run "$SCRIPTS/run.sh" -- --config.seed=1 "--config.title=two  words 'n \$x"
  expect 0 "start ppo on 2 workers" "--workdir=gs://bucket/ppo" "started"
  eventually shows exited
  for worker in 0 1; do
    home=$FAKE/vms/my-tpu/0-$worker
    run cat "$FAKE/programs.my-tpu.0-$worker"
    expect 0 "$home/rlhf_jax|-m|rlhf_jax.main|--config=configs/x.py|" \
      "|--config.seed=1|--config.title=two  words 'n \$x|" \
      "|--workdir=$home/gcs/bucket/ppo|--distributed=10.0.0.0:8482,2,$worker"
    grep -q -- "--implicit-dirs" "$home/gcsfuse_calls"
    [ "$(cat "$home/rlhf_jax_runs/ppo/exit_code")" = 0 ]
  done
}

@test "slices count their processes through; one worker is not distributed" {
  ready_slice v6e-16 2 2
  "$SCRIPTS/run.sh"
  eventually shows exited
  grep -q -- "--distributed=10.0.0.0:8482,4,0" "$FAKE/programs.my-tpu.0-0"
  grep -q -- "--distributed=10.0.0.0:8482,4,3" "$FAKE/programs.my-tpu.1-1"
  TPU_NAME=single ready_slice v6e-8 1 1 single
  TPU_NAME=single "$SCRIPTS/run.sh"
  TPU_NAME=single eventually shows exited
  [ "$(grep -c distributed "$FAKE/programs.single.0-0")" = 0 ]
}

@test "it outlives ssh, and its exit code, progress and log are kept" {
  ready_slice
  program <<'END'
printf 'loading\rppo 1/3  33%%\x1b[K\rppo 2/3  66%%  kl 0.1\n'
until [ -e "$FAKE/go" ]; do sleep 0.1; done
echo "error: loss is not finite"; exit 3
END
  "$SCRIPTS/run.sh"
  eventually shows "running .*ppo 2/3  66%  kl 0.1"
  touch "$FAKE/go"
  eventually shows "exited .* 3 .*ppo 2/3"
  run "$SCRIPTS/logs.sh" --run=ppo
  expect 0 "== launch" "commit $COMMIT" "loss is not finite"
  run "$SCRIPTS/logs.sh" --run=ppo --lines=1
  [[ $output != *"== launch"* ]]
  run "$SCRIPTS/logs.sh" --run=other
  expect 12 "no run other" "./ppo/"
  run "$SCRIPTS/logs.sh" --run=ppo --worker=all
  expect 2 "take one number"
}

@test "following a log shows what comes and ends with its reader" {
  ready_slice
  # shellcheck disable=SC2016
  program <<<'for i in 1 2 3 4 5; do echo "line $i"; sleep 0.2; done'
  "$SCRIPTS/run.sh"
  run timeout 3 "$SCRIPTS/logs.sh" --run=ppo --follow
  expect 124 "line 1" "line 5"
}

@test "a second start is refused, whatever its name" {
  ready_slice v6e-16 1 2
  program <<<'sleep 60 & wait'
  "$SCRIPTS/run.sh"
  run "$SCRIPTS/run.sh"
  expect 2 "ppo runs on t1v-n-my-tpu-0-w-0"
  run "$SCRIPTS/run.sh" --run=other
  expect 2 "ppo runs on"
  [ "$(starts 0-0)" = 1 ]
  [ "$(starts 0-1)" = 1 ]
}

@test "two starts at once: one wins on every worker" {
  ready_slice
  program <<<'sleep 60 & wait'
  "$SCRIPTS/run.sh" >/dev/null 2>&1 3>&- &
  first=$!
  codes=''
  "$SCRIPTS/run.sh" --run=second >/dev/null 2>&1 || codes+=x
  wait "$first" || codes+=x
  [ "$codes" = x ]
  eventually shows "running .*starting attempt 1"
  [ "$(starts)" = 1 ]
}

@test "the same command starts again after the end and resumes" {
  ready_slice
  # shellcheck disable=SC2016
  program <<<'[ "$ATTEMPT" = 1 ] && exit 75; exit 0'
  "$SCRIPTS/run.sh"
  eventually shows "exited .* 75 "
  "$SCRIPTS/run.sh"
  eventually shows "exited .* 0 "
  [ "$(starts)" = 2 ]
}

@test "--stop asks for a checkpoint and code 75" {
  ready_slice v6e-16 1 2
  program <<<'sleep 60 & wait'
  "$SCRIPTS/run.sh"
  eventually shows "w-0 .*starting"
  eventually shows "w-1 .*starting"
  run "$SCRIPTS/run.sh" --run=other --stop
  expect 0 "stop=not-running"
  run "$SCRIPTS/run.sh" --stop
  expect 0 "w-0 stop=sent" "w-1 stop=sent"
  eventually shows "w-0 .*exited .* 75 "
  eventually shows "w-1 .*exited .* 75 "
  run "$SCRIPTS/logs.sh" --run=ppo
  expect 0 "checkpoint saved"
}

@test "a process that goes with its machine is lost, not finished" {
  ready_slice
  program <<<'sleep 60 & wait'
  "$SCRIPTS/run.sh"
  eventually shows running
  kill -KILL -- "-$(cat "$FAKE/vms/my-tpu/0-0/rlhf_jax_runs/ppo/group")"
  eventually shows "lost .*ppo .* - "
}

@test "a killed process leaves the signal's code" {
  ready_slice
  program <<<'kill -KILL $$'
  "$SCRIPTS/run.sh"
  eventually shows "exited .* 137 "
}

@test "folders that would be lost are refused" {
  for workdir in runs/x gs://bucket gs://bucket/ /tmp/x; do
    run "$SCRIPTS/run.sh" --workdir="$workdir"
    expect 2 "--workdir=$workdir"
  done
  [ ! -e "$FAKE/calls" ]
  ready_slice
  run "$SCRIPTS/run.sh" --workdir=/mnt/x --local
  expect 0
  eventually shows exited
  grep -q -- "--workdir=/mnt/x" "$FAKE/programs.my-tpu.0-0"
}

@test "--direct hands gs:// to the program" {
  ready_slice
  "$SCRIPTS/run.sh" --direct
  eventually shows exited
  grep -q -- "--workdir=gs://bucket/ppo" "$FAKE/programs.my-tpu.0-0"
  [ ! -e "$FAKE/vms/my-tpu/0-0/gcsfuse_calls" ]
}

@test "mistakes in the command are found before anything runs" {
  run "$SCRIPTS/run.sh" --config=configs/none.py
  expect 2 "no such file"
  run "$SCRIPTS/run.sh" -- config.seed=1
  expect 2 "must be an override"
  run "$SCRIPTS/run.sh" -- --workdir=gs://b/c
  expect 2 "is set by this command"
  run "$SCRIPTS/run.sh" -- --config.title=$'a\nb'
  expect 2 "must be one line"
  run "$SCRIPTS/run.sh" -- --config.hub.api_key=1234
  expect 2 "--config.hub.api_key=...: looks secret"
  [[ $output != *1234* ]]
  [ ! -e "$FAKE/calls" ]
  run "$SCRIPTS/run.sh" -- --config.tokenizer=secretive --config.max_tokens=9
  expect 10 "my-tpu in zone-a is NONE"
}

@test "a bucket that cannot be mounted starts nothing" {
  ready_slice v6e-16 1 2
  echo "gcsfuse: 403 forbidden" >"$FAKE/gcsfuse_error"
  run "$SCRIPTS/run.sh"
  expect 13 "reason=mount-of-bucket" "403 forbidden"
  [ ! -e "$FAKE/programs.my-tpu.0-0" ]
}

@test "without set-up the remedy is named" {
  echo "v6e-8 1 1" >"$FAKE/shape"
  "$SCRIPTS/create.sh" >/dev/null
  run "$SCRIPTS/run.sh"
  expect 12 "run setup.sh"
}

@test "status of a slice that is not there, and of silent workers" {
  run "$SCRIPTS/status.sh"
  expect 10 "my-tpu in zone-a is NONE"
  ready_slice v6e-16 1 2
  run "$SCRIPTS/status.sh"
  expect 0 "1 x v6e-16, 2 workers" "t1v-n-my-tpu-0-w-1" "idle"
  echo "0-1" >"$FAKE/skipped_worker"
  run "$SCRIPTS/status.sh"
  expect 12 "w-0" "not all of its 2 workers"
}

@test "one ssh that fails is tried again, a minute later" {
  ready_slice
  echo 1 >"$FAKE/ssh_failures"
  run "$SCRIPTS/status.sh"
  expect 0 "0 of 1 workers answered; again in 0 s" "idle"
}
