#!/usr/bin/env bats
# create.sh: what it asks for, what it refuses, what it leaves behind.

load common

@test "every command prints its help and touches nothing" {
  clean_environment
  for script in create setup run logs status watch sweep list delete; do
    run "$SCRIPTS/$script.sh" --help
    expect 0 "$script.sh --"
  done
  [ ! -e "$FAKE/calls" ]
}

@test "an unknown flag, a switch with a value and a missing value are refused" {
  run "$SCRIPTS/create.sh" --zoen=a
  expect 2 "--zoen=a: not known"
  run "$SCRIPTS/create.sh" --dry-run=no
  expect 2 "--dry-run=no: not known"
  run "$SCRIPTS/create.sh" --zone
  expect 2 "--zone: takes a value"
  TPU_ZONE='' run "$SCRIPTS/create.sh"
  expect 2 "--zone: is missing"
  [ ! -e "$FAKE/calls" ]
}

@test "each generation has its runtime version" {
  for pair in v2-8:tpu-ubuntu2204-base v3-32:tpu-ubuntu2204-base v4-8:tpu-ubuntu2204-base v5litepod-16:v2-alpha-tpuv5-lite \
    v5p-8:v2-alpha-tpuv5 v6e-8:v2-alpha-tpuv6e \
    tpu7x-8:v2-alpha-tpu7-ubuntu2404; do
    run "$SCRIPTS/create.sh" --type="${pair%%:*}" --dry-run
    expect 0 "--accelerator-type=${pair%%:*}" "--runtime-version=${pair#*:} "
  done
  run "$SCRIPTS/create.sh" --type=v5e-16
  expect 2 "v5litepod-16"
  run "$SCRIPTS/create.sh" --type=v9-8
  expect 2 "--type=v9-8: must be v2-N"
  run "$SCRIPTS/create.sh" --type=v9-8 --runtime=later --dry-run
  expect 0 "--accelerator-type=v9-8" "--runtime-version=later"
  run "$SCRIPTS/create.sh" --type=tpu7x-8 --dry-run
  expect 0 "WARNING: Google supports TPU7x in GKE"
  [ ! -e "$FAKE/calls" ]
}

@test "spot, reserved, on-demand; one slice or several" {
  run "$SCRIPTS/create.sh" --dry-run --valid-until=90m
  expect 0 " --spot" "--node-id=my-tpu" "--valid-until-duration=90m" \
    "--labels=rlhf_jax=ann"
  run "$SCRIPTS/create.sh" --dry-run --provisioning=reserved --nodes=2
  expect 0 " --reserved" "--node-count=2 --node-prefix=my-tpu"
  [[ $output != *--node-id* ]]
  run "$SCRIPTS/create.sh" --dry-run --provisioning=on-demand -- --tags=a\ b
  expect 0 "--tags=a\\ b"
  [[ $output != *--spot* && $output != *--reserved* ]]
  run "$SCRIPTS/create.sh" --dry-run --provisioning=cheap
  expect 2 "must be spot, reserved"
  TPU_PROVISIONING='' run "$SCRIPTS/create.sh" --dry-run
  expect 2 "--provisioning: is missing"
}

@test "what looks secret is refused and not repeated" {
  run "$SCRIPTS/create.sh" -- --metadata=a=b,HF_TOKEN=hf_1234
  expect 2 "--metadata=...: looks secret"
  [[ $output != *1234* ]]
  [ ! -e "$FAKE/calls" ]
}

@test "it waits until ACTIVE and shows the states on the way" {
  echo "ACCEPTED WAITING_FOR_RESOURCES PROVISIONING ACTIVE" \
    >"$FAKE/next_states"
  run "$SCRIPTS/create.sh" --project=p
  expect 0 "WAITING_FOR_RESOURCES" "PROVISIONING" "ACTIVE. It costs money"
  [ "$(calls "queued-resources create my-tpu .*--project=p")" = 1 ]
  [ "$(calls "queued-resources delete")" = 0 ]
}

@test "FAILED says why, deletes the request and exits with 10" {
  echo "ACCEPTED PROVISIONING FAILED" >"$FAKE/next_states"
  echo "no more capacity in the zone" >"$FAKE/failure"
  run "$SCRIPTS/create.sh"
  expect 10 "is FAILED: no more capacity in the zone" "deleting what was requested"
  [ ! -d "$FAKE/slices/my-tpu" ]
}

@test "SUSPENDED while waiting is explained and cleaned up" {
  echo "PROVISIONING SUSPENDING" >"$FAKE/next_states"
  run "$SCRIPTS/create.sh"
  expect 10 "SUSPENDING" "takes spot machines back"
  [ ! -d "$FAKE/slices/my-tpu" ]
}

@test "an interrupted wait deletes what was requested" {
  echo "WAITING_FOR_RESOURCES" >"$FAKE/next_states"
  "$SCRIPTS/create.sh" >"$BATS_TEST_TMPDIR/out" 3>&- &
  creating=$!
  eventually grep -q WAITING "$BATS_TEST_TMPDIR/out"
  kill -TERM "$creating"
  code=0
  wait "$creating" || code=$?
  [ "$code" = 143 ]
  [ "$(calls "queued-resources delete my-tpu --force --quiet")" = 1 ]
  [ ! -d "$FAKE/slices/my-tpu" ]
}

@test "a clean-up that fails says that it may cost money" {
  echo "FAILED" >"$FAKE/next_states"
  echo "UNAVAILABLE" >"$FAKE/delete_error"
  run "$SCRIPTS/create.sh"
  expect 10 "IT MAY STILL EXIST AND COST MONEY"
}

@test "a slice that exists is neither created nor deleted" {
  ready_slice
  run "$SCRIPTS/create.sh"
  expect 2 "exists already, ACTIVE"
  [ "$(calls create)" = 0 ]
  [ "$(calls delete)" = 0 ]
}

@test "a refused request is a mistake; an overloaded service is not" {
  echo "PERMISSION_DENIED: no" >"$FAKE/create_error"
  run "$SCRIPTS/create.sh"
  expect 2 "PERMISSION_DENIED"
  echo "RESOURCE_EXHAUSTED: quota" >"$FAKE/create_error"
  run "$SCRIPTS/create.sh"
  expect 10 "may succeed later"
}

@test "a gcloud that cannot read is not taken for an absent slice" {
  ready_slice
  echo "UNAUTHENTICATED: log in" >"$FAKE/describe_error"
  run "$SCRIPTS/create.sh"
  expect 12 "UNAUTHENTICATED"
  [ "$(calls create)" = 0 ]
}
