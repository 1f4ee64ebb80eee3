#!/usr/bin/env bats
# watch.sh: what is started again after what, and what never is.
# shellcheck disable=SC2016  # programs are expanded on the worker

load common

# The program takes three steps, each kept in the bucket, and calls what the
# test defines (after_step) after each.
three_steps() {
  {
    cat
    cat <<'END'
step=$(cat "$workdir/step" 2>/dev/null || echo 0)
mkdir -p "$workdir"
echo "resumed at $step"
while ((step < 3)); do
  echo "$((++step))" >"$workdir/step"
  echo "ppo $step/3  $((step * 33))%"
  after_step
done
exit 0
END
  } >"$FAKE/program"
}

log_of() { cat "$FAKE/vms/my-tpu/${1:-0-0}/rlhf_jax_runs/ppo/log"; }

watch_in_background() {
  "$SCRIPTS/watch.sh" >"$BATS_TEST_TMPDIR/out" 3>&- &
  watching=$!
}

@test "from nothing to the end: create, set up, run" {
  echo "WAITING_FOR_RESOURCES PROVISIONING ACTIVE" >"$FAKE/next_states"
  run "$SCRIPTS/watch.sh" --nodes=1 -- --config.seed=1
  expect 0 "ACTIVE. It costs money" "8 devices" "ppo 3/3  100%" "ppo: done" \
    "my-tpu (ACTIVE) may cost money"
  [ "$(starts)" = 1 ]
  grep -q -- "--config.seed=1" "$FAKE/programs.my-tpu.0-0"
  [ "$(calls "queued-resources delete")" = 0 ]
}

@test "--delete deletes the slice, after success and after failure" {
  run "$SCRIPTS/watch.sh" --delete
  expect 0 "done" "gone"
  [ ! -d "$FAKE/slices/my-tpu" ]
  program <<<'echo "error: diverged"; exit 3'
  run "$SCRIPTS/watch.sh" --delete
  expect 3 "error: diverged" "Not restarted" "gone"
  [ ! -d "$FAKE/slices/my-tpu" ]
}

@test "a preempted slice is deleted, created, set up, and the run resumes" {
  three_steps <<'END'
after_step() {
  ((ATTEMPT == 1)) || return 0
  echo "SUSPENDING SUSPENDED" >"$FAKE/slices/$SLICE/states"
  sleep 60 & wait
}
END
  run "$SCRIPTS/watch.sh" -- --config.seed=1
  expect 0 "my-tpu is SUSPEND" "restart 1 of 3" "ppo 3/3" "done"
  [ "$(calls "queued-resources create")" = 2 ]
  [ "$(calls "queued-resources delete")" = 1 ]
  [ "$(starts)" = 2 ]
  [ "$(sort -u "$FAKE/programs.my-tpu.0-0" | wc -l)" = 1 ]
  [ "$(cat "$FAKE/vms/my-tpu/0-0/rlhf_jax_commit")" = "$COMMIT" ]
  log_of | grep -q "resumed at 1"
}

@test "a node that is PREEMPTED while its resource says ACTIVE" {
  three_steps <<'END'
after_step() {
  ((ATTEMPT == 1)) || return 0
  echo PREEMPTED >"$FAKE/node_state"
  kill -KILL 0
}
END
  run "$SCRIPTS/watch.sh"
  expect 0 "a node of my-tpu is PREEMPTED" "restart 1 of 3" "done"
  [ "$(calls "queued-resources create")" = 2 ]
  log_of | grep -q "resumed at 1"
}

@test "a failure is never tried again and is watch's own exit code" {
  ready_slice v6e-16 1 2
  for code in 1 2 3 7; do
    echo "echo 'error: number $code'; exit $code" >"$FAKE/program"
    rm -f "$FAKE"/programs.*
    run "$SCRIPTS/watch.sh" --type=v6e-16 --retry-failed
    expect "$code" "error: number $code" "Not restarted" "may cost money"
    [ "$(starts 0-0)" = 1 ]
    [ "$(starts 0-1)" = 1 ]
  done
  [ "$(calls "queued-resources delete")" = 0 ]
}

@test "the failure counts, not the peers that it takes along" {
  ready_slice v6e-16 1 2
  program <<'END'
((WORKER == 0)) && exit 42
sleep 1
echo "error: loss is not finite"
exit 3
END
  run "$SCRIPTS/watch.sh" --type=v6e-16 --grace=20
  expect 3 "loss is not finite" "ended on t1v-n-my-tpu-0-w-1 with 3"
  [ "$(starts 0-0)" = 1 ]
}

@test "75 and 42 start all workers again, on the same slice" {
  ready_slice v6e-16 1 2
  three_steps <<'END'
after_step() {
  ((ATTEMPT != 1)) || exit 75
  ((ATTEMPT != 2)) || exit 42
}
END
  run "$SCRIPTS/watch.sh" --type=v6e-16
  expect 0 "stopped with a checkpoint; restart 1" \
    "another process died; restart 2" "done"
  [ "$(starts 0-0)" = 3 ]
  [ "$(starts 0-1)" = 3 ]
  [ "$(calls "queued-resources create")" = 0 ]
  [ "$(calls "queued-resources scp")" = 0 ]
}

@test "a killed process restarts all, also those that hang" {
  ready_slice v6e-16 1 2
  program <<'END'
((ATTEMPT > 1)) && exit 0
((WORKER == 0)) && kill -KILL $$
sleep 60 & wait
END
  run "$SCRIPTS/watch.sh" --type=v6e-16
  expect 0 "w-0 was killed by signal 9" "restart 1" "done"
  [ "$(starts 0-1)" = 2 ]
  log_of 0-1 | grep -q "checkpoint saved"
}

@test "three ends at one step of machines that stay are a failure" {
  ready_slice
  program <<<'echo "ppo 2/9  22%"; kill -KILL $$'
  run "$SCRIPTS/watch.sh" --max-restarts=9
  expect 137 "killed by signal 9 three times in a row at step 2/9"
  [ "$(starts)" = 3 ]
}

@test "no more restarts than allowed" {
  ready_slice
  program <<<'echo "ppo $ATTEMPT/9  11%"; exit 75'
  run "$SCRIPTS/watch.sh" --max-restarts=4
  expect 11 "after 4 restarts. Not tried again"
  [ "$(starts)" = 5 ]
}

@test "no capacity is tried again, leaves nothing behind and ends" {
  echo FAILED >"$FAKE/next_states"
  run "$SCRIPTS/watch.sh"
  expect 11 "could not be created; restart 3 of 3" "Not tried again"
  [ "$(calls "queued-resources create")" = 4 ]
  [ ! -d "$FAKE/slices/my-tpu" ]
}

@test "a refused request is not tried again" {
  echo "PERMISSION_DENIED: no" >"$FAKE/create_error"
  run "$SCRIPTS/watch.sh"
  expect 10 "PERMISSION_DENIED" "was refused. Not tried again"
  [ "$(calls "queued-resources create")" = 1 ]
}

@test "a set-up that fails is not tried again" {
  echo "No solution found" >"$FAKE/pip_error"
  run "$SCRIPTS/watch.sh"
  expect 13 "No solution found" "the set-up failed" "may cost money"
  [ "$(calls "queued-resources create")" = 1 ]
}

@test "a slice that somebody deleted is not created again" {
  ready_slice
  program <<<'rm -r "${FAKE:?}/slices/$SLICE"; exit 75'
  run "$SCRIPTS/watch.sh"
  expect 10 "somebody deleted my-tpu"
  [ "$(calls "queued-resources create")" = 0 ]
}

@test "a run that was stopped on purpose stays stopped" {
  ready_slice
  program <<<'sleep 60 & wait'
  watch_in_background
  eventually shows "running .*starting"
  "$SCRIPTS/run.sh" --stop
  code=0
  wait "$watching" || code=$?
  [ "$code" = 75 ]
  grep -q "was asked to stop" "$BATS_TEST_TMPDIR/out"
  [ "$(starts)" = 1 ]
}

@test "ending the watch leaves the run; the next watch follows it" {
  ready_slice
  program <<<'until [ -e "$FAKE/go" ]; do sleep 0.1; done; exit 0'
  watch_in_background
  eventually shows "running .*starting"
  kill -TERM "$watching"
  code=0
  wait "$watching" || code=$?
  [ "$code" = 143 ]
  shows running
  watch_in_background
  eventually grep -q "following it" "$BATS_TEST_TMPDIR/out"
  touch "$FAKE/go"
  wait "$watching"
  [ "$(starts)" = 1 ]
}

@test "ending the watch while it waits for a slice deletes the request" {
  echo WAITING_FOR_RESOURCES >"$FAKE/next_states"
  watch_in_background
  eventually grep -q WAITING_FOR "$BATS_TEST_TMPDIR/out"
  kill -TERM "$watching"
  wait "$watching" || true
  [ ! -d "$FAKE/slices/my-tpu" ]
}

@test "what failed while nobody watched is not started again unasked" {
  ready_slice
  program <<<'((ATTEMPT > 1)) || { echo "error: early"; exit 3; }; exit 0'
  "$SCRIPTS/run.sh"
  eventually shows "exited .* 3 "
  run "$SCRIPTS/watch.sh"
  expect 3 "--retry-failed" "error: early"
  [ "$(starts)" = 1 ]
  run "$SCRIPTS/watch.sh" --retry-failed
  expect 0 "done"
  [ "$(starts)" = 2 ]
}

@test "a slice that runs something else is left alone" {
  ready_slice
  program <<<'sleep 60 & wait'
  "$SCRIPTS/run.sh" --run=other
  run "$SCRIPTS/watch.sh"
  expect 2 "runs something else"
  shows "running .*other"
}

@test "an ssh that fails for a while does not restart the run" {
  ready_slice
  program <<<'until [ -e "$FAKE/go" ]; do sleep 0.1; done; exit 0'
  # Calls 1 to 3 look, look again and start; 9 is after the failures.
  printf '%s\n' '4 echo 3 >$FAKE/ssh_failures' '9 touch $FAKE/go' \
    >"$FAKE/on_ssh"
  run "$SCRIPTS/watch.sh"
  expect 0 "0 of 1 workers answered" "done"
  [ "$(starts)" = 1 ]
}

@test "mistakes are found before anything is created" {
  run "$SCRIPTS/watch.sh" --type=v5e-8
  expect 2 "v5litepod-8"
  run "$SCRIPTS/watch.sh" --provisioning=cheap
  expect 2 "must be spot"
  run "$SCRIPTS/watch.sh" --max-restarts=-1
  expect 2 "-1: --max-restarts"
  run "$SCRIPTS/watch.sh" --commit=none
  expect 2 "no such commit"
  run "$SCRIPTS/watch.sh" --workdir=/tmp/x
  expect 2 "lost with the machine"
  run "$SCRIPTS/watch.sh" --dry-run
  expect 0 "nothing to complain about"
  [ ! -e "$FAKE/calls" ]
}
