# Helpers of the tests: a copy of the scripts in a small repository, a fake
# gcloud first on the PATH, and a folder $FAKE that says what it plays.
# shellcheck shell=bash disable=SC2154  # bats sets status and output

setup() {
  export FAKE=$BATS_TEST_TMPDIR/cloud
  REPO=$BATS_TEST_TMPDIR/repository
  SCRIPTS=$REPO/tpu_scripts
  mkdir -p "$FAKE" "$REPO/configs"
  cp -r "$BATS_TEST_DIRNAME/../../tpu_scripts" "$REPO/"
  echo "experiment" >"$REPO/configs/x.py"
  echo "packaging" >"$REPO/setup.py"
  git -C "$REPO" init -q
  git -C "$REPO" add .
  git -C "$REPO" -c user.name=a -c user.email=a@b commit -qm "a"
  COMMIT=$(git -C "$REPO" rev-parse --short=12 HEAD)
  clean_environment
  export PATH=$BATS_TEST_DIRNAME/fake:$PATH
  export TPU_NAME=my-tpu TPU_ZONE=zone-a TPU_TYPE=v6e-8 TPU_OWNER=ann
  export TPU_PROVISIONING=spot TPU_RETRY_SECONDS=0 TPU_POLL_SECONDS=0.1
  export TPU_GRACE_SECONDS=2 TPU_MAX_RESTARTS=3
  export TPU_CONFIG=configs/x.py TPU_WORKDIR=gs://bucket/ppo
  echo 'echo "ppo 3/3  100%"; exit 0' >"$FAKE/program"
}

clean_environment() {
  local name
  for name in $(compgen -e TPU_); do unset "$name"; done
}

teardown() {
  local group
  for group in "$FAKE"/vms/*/*/rlhf_jax_runs/*/group; do
    [ ! -f "$group" ] || kill -KILL -- "-$(cat "$group")" 2>/dev/null || true
  done
}

# An ACTIVE slice with code and environment: [TYPE NODES WORKERS [NAME]]
ready_slice() {
  local home name=${4:-$TPU_NAME}
  echo "${1:-v6e-8} ${2:-1} ${3:-1}" >"$FAKE/shape"
  TPU_NAME=$name TPU_TYPE=${1:-v6e-8} TPU_NODES=${2:-1} \
    "$SCRIPTS/create.sh" >/dev/null
  for home in "$FAKE/vms/$name"/*; do
    cp -r "$REPO" "$home/rlhf_jax"
    mkdir -p "$home/rlhf_jax_env/bin"
    ln -s "$BATS_TEST_DIRNAME/fake/vm/python" "$home/rlhf_jax_env/bin/python"
    echo "$COMMIT" >"$home/rlhf_jax_commit"
  done
  : >"$FAKE/calls"
  rm -f "$FAKE/ssh_count"
}

program() { cat >"$FAKE/program"; }

starts() {  # how often the program was started on worker N-W of a slice
  wc -l <"$FAKE/programs.${2:-$TPU_NAME}.${1:-0-0}"
}

calls() { grep -c -- "$1" "$FAKE/calls" || true; }

expect() {  # expect STATUS [TEXT...]: of the last `run`
  local text
  [ "$status" = "$1" ] || { echo "exit $status, not $1: $output" && return 1; }
  for text in "${@:2}"; do
    [[ $output == *"$text"* ]] || { echo "no '$text' in: $output" && return 1; }
  done
}

eventually() {  # the command succeeds within some seconds
  local deadline=$((SECONDS + 30))
  while ((SECONDS < deadline)); do
    if "$@"; then return; fi
    sleep 0.1
  done
  echo "never: $*"
  return 1
}

shows() { "$SCRIPTS/status.sh" | grep -q -- "$1"; }
