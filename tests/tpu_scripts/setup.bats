#!/usr/bin/env bats
# setup.sh: the committed code, its environment, every chip.

load common

created() {  # created TYPE NODES WORKERS: ACTIVE, nothing on its disks
  echo "$*" >"$FAKE/shape"
  TPU_TYPE=$1 TPU_NODES=$2 "$SCRIPTS/create.sh" >/dev/null
}

@test "all workers get the commit, Python 3.12 and the packages" {
  created v6e-8 1 2
  run "$SCRIPTS/setup.sh"
  expect 0 "commit $COMMIT on 2 workers" "8 devices in 2 processes" "ready"
  for worker in 0-0 0-1; do
    home=$FAKE/vms/my-tpu/$worker
    [ -f "$home/rlhf_jax/configs/x.py" ]
    [ "$(cat "$home/rlhf_jax_commit")" = "$COMMIT" ]
    grep -q "venv --python 3.12" "$home/uv_calls"
    grep -qF -- "-e .[tpu]" "$home/uv_calls"
    [ ! -e "$home/rlhf_jax-$COMMIT.tar.gz" ]
  done
}

@test "uncommitted changes stay behind, with a warning" {
  created v6e-8 1 1
  echo "changed" >"$REPO/configs/x.py"
  run "$SCRIPTS/setup.sh"
  expect 0 "WARNING: uncommitted changes" "configs/x.py"
  [ "$(cat "$FAKE/vms/my-tpu/0-0/rlhf_jax/configs/x.py")" = experiment ]
}

@test "several slices of v4: devices are chips, not cores" {
  created v4-16 2 2
  echo "chips=ok processes=4 local=4 devices=16" >"$FAKE/chips"
  run "$SCRIPTS/setup.sh"
  expect 0 "16 devices in 4 processes"
}

@test "a chip that JAX does not see fails the set-up" {
  created v6e-8 1 1
  echo "chips=ok processes=1 local=7 devices=7" >"$FAKE/chips"
  run "$SCRIPTS/setup.sh"
  expect 13 "JAX sees 7 devices; 1 x v6e-8 has 8"
}

@test "workers that do not see each other fail the set-up" {
  created v6e-16 1 2
  echo "chips=ok processes=1 local=8 devices=8" >"$FAKE/chips"
  run "$SCRIPTS/setup.sh"
  expect 13 "JAX sees 1 of 2 workers"
}

@test "a JAX that does not start shows its error" {
  created v6e-8 1 1
  echo "RuntimeError: the TPU is in use by process 7" >"$FAKE/chips"
  run "$SCRIPTS/setup.sh"
  expect 13 "chips=failed" "in use by process 7"
}

@test "a failing installation names the worker, the step and the reason" {
  created v6e-8 1 1
  echo "No solution found for jax[tpu]" >"$FAKE/pip_error"
  run "$SCRIPTS/setup.sh"
  expect 13 "t1v-n-my-tpu-0-w-0" "step=packages" "No solution found"
}

@test "an ssh that fails once is tried again, also after a partial success" {
  created v6e-8 1 2
  echo 1 >"$FAKE/ssh_failures"
  run "$SCRIPTS/setup.sh"
  expect 0 "0 of 2 workers answered; again" "ready"
  echo "0-1" >"$FAKE/skipped_worker"
  echo "$(($(cat "$FAKE/ssh_count") + 2)) rm \$FAKE/skipped_worker" \
    >"$FAKE/on_ssh"
  run "$SCRIPTS/setup.sh"
  expect 0 "1 of 2 workers answered; again" "ready"
}

@test "a worker that gcloud leaves out without an error is noticed" {
  created v6e-8 1 2
  echo "0-1" >"$FAKE/skipped_worker"
  run "$SCRIPTS/setup.sh"
  expect 12 "not all of its 2 workers answered" "ssh-add"
}

@test "not ACTIVE, or a node taken away, exits with 10" {
  run "$SCRIPTS/setup.sh"
  expect 10 "is NONE, not ACTIVE"
  created v6e-8 1 1
  echo 9 >"$FAKE/ssh_failures"
  echo PREEMPTED >"$FAKE/node_state"
  run "$SCRIPTS/setup.sh"
  expect 10 "my-tpu is PREEMPTED"
}

@test "the code under a running program is not replaced" {
  ready_slice
  program <<<'sleep 60 & wait'
  "$SCRIPTS/run.sh"
  run "$SCRIPTS/setup.sh"
  expect 13 "install=refused running=ppo"
  shows running
}
