#!/usr/bin/env bats
# list.sh and delete.sh: what costs money is seen, and goes when told.

load common

some_slices() {
  ready_slice v6e-8 1 1 ann-1
  TPU_OWNER=bob ready_slice v6e-8 1 1 bob-1
  TPU_ZONE=zone-b ready_slice v6e-8 1 1 ann-2
  echo "by-hand,v4-8,1,READY," >"$FAKE/single_vms.zone-b"
  : >"$FAKE/calls"
}

@test "all zones, owners and kinds are listed" {
  some_slices
  run "$SCRIPTS/list.sh" --zones=all
  expect 0 "ann-1" "bob-1" "ann-2" "by-hand" "tpu-vm" "v4-8" "4 of these"
  run "$SCRIPTS/list.sh" --zones=zone-b
  expect 0 "ann-2" "2 of these"
  [[ $output != *ann-1* ]]
  run "$SCRIPTS/list.sh"
  expect 0 "ann-1" "bob-1" "2 of these"
}

@test "what is SUSPENDED or FAILED is listed, not counted" {
  some_slices
  echo SUSPENDED >"$FAKE/slices/ann-1/states"
  run "$SCRIPTS/list.sh" --zones=zone-a
  expect 0 "SUSPENDED" "1 of these"
}

@test "a zone that cannot be read is said, not left out" {
  some_slices
  echo "UNAVAILABLE" >"$FAKE/list_error.zone-a"
  run "$SCRIPTS/list.sh" --zones=zone-a,zone-b
  expect 12 "ann-2" "could not read: zone-a. There may be more"
  TPU_NAME='' TPU_ZONE='' run "$SCRIPTS/list.sh"
  expect 2 "--zones: is missing"
}

@test "deleting one asks first" {
  some_slices
  run "$SCRIPTS/delete.sh" --name=ann-1 <<<"no"
  expect 2 "ann-1" "not confirmed; nothing was deleted"
  run "$SCRIPTS/delete.sh" --name=ann-1 </dev/null
  expect 2 "not confirmed"
  run "$SCRIPTS/delete.sh" --name=ann-1 --yes --dry-run
  expect 0 "+ gcloud compute tpus queued-resources delete ann-1"
  [ -d "$FAKE/slices/ann-1" ]
  run "$SCRIPTS/delete.sh" --name=ann-1 <<<"yes"
  expect 0 "gone"
  [ ! -d "$FAKE/slices/ann-1" ]
  [ -d "$FAKE/slices/bob-1" ]
}

@test "a TPU VM without a queued resource, and a name that is not there" {
  some_slices
  run "$SCRIPTS/delete.sh" --name=by-hand --zone=zone-b --yes
  expect 0 "tpu-vm by-hand" "gone"
  [ ! -s "$FAKE/single_vms.zone-b" ]
  run "$SCRIPTS/delete.sh" --name=by-hand --zone=zone-b --yes
  expect 0 "nothing to delete"
}

@test "--all deletes what the owner created and leaves the rest alone" {
  some_slices
  run "$SCRIPTS/delete.sh" --all --zones=all --yes
  expect 0 "left alone: bob-1" "left alone: by-hand" "gone"
  [ "$(ls "$FAKE/slices")" = bob-1 ]
  [ -s "$FAKE/single_vms.zone-b" ]
  TPU_ZONE='' run "$SCRIPTS/delete.sh" --all
  expect 2 "--zones: is missing"
}

@test "what is still there is said" {
  some_slices
  echo "UNAVAILABLE" >"$FAKE/delete_error"
  run "$SCRIPTS/delete.sh" --name=ann-1 --yes
  expect 12 "ann-1 in zone-a is still there: ACTIVE" "not everything is gone"
}

@test "a gcloud that cannot read is not taken for nothing to delete" {
  some_slices
  echo "UNAUTHENTICATED" >"$FAKE/describe_error"
  run "$SCRIPTS/delete.sh" --name=ann-1 --yes
  expect 12 "UNAUTHENTICATED"
  rm "$FAKE/describe_error"
  echo "UNAUTHENTICATED" >"$FAKE/list_error.zone-b"
  run "$SCRIPTS/delete.sh" --all --zones=all --yes
  expect 12 "could not read: zone-b"
  [ "$(calls delete)" = 0 ]
}
