#!/usr/bin/env bash
# Brings the committed code and its environment to all workers of a slice.
#
#   setup.sh --name=my-tpu --zone=us-east5-b
#
#   --name=... --zone=...  TPU_NAME, TPU_ZONE
#   --project=...          TPU_PROJECT
#   --ssh=external         TPU_SSH       external, internal or iap
#   --commit=HEAD          TPU_COMMIT    what to bring
#   --no-gcsfuse           TPU_NO_GCSFUSE=1  do not install gcsfuse, by which
#                          workers see gs:// folders (run.sh)
#   --no-check             TPU_NO_CHECK=1  do not start JAX to count the chips
#
# Copies `git archive COMMIT` (uncommitted changes stay behind, with a
# warning), installs uv, Python 3.12 and '.[tpu]', and starts JAX on all
# workers together: each must see every chip. Refused while a run goes on.
# Exit codes: 0, 2 mistake, 10 no TPU, 12 workers do not answer, 13 failed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

: "${TPU_COMMIT:=HEAD}"
parse "${COMMON[@]}" commit=TPU_COMMIT no-gcsfuse!TPU_NO_GCSFUSE \
  no-check!TPU_NO_CHECK -- "$@"
check_common
commit=$(git -C "$HERE" rev-parse --verify --quiet --short=12 \
  "$TPU_COMMIT^{commit}") ||
  mistake "--commit=$TPU_COMMIT: no such commit in $(dirname "$HERE")."
check_active

changes=$(git -C "$HERE/.." status --porcelain)
if [ -n "$changes" ]; then
  say "WARNING: uncommitted changes stay here; workers get commit $commit:"
  head -n 10 <<<"$changes" | sed "s/^/    /"
fi
say "set up $TPU_NAME: commit $commit on $WORKERS workers of $TYPE"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=rlhf_jax-$commit.tar.gz
git -C "$HERE/.." archive --format=tar.gz -o "$folder/$archive" "$commit"

flag=$(ssh_flags)
copy() {
  cloud queued-resources scp "$folder/$archive" "$TPU_NAME": --worker=all \
    --node=all ${flag:+"$flag"}
}
if ! copy; then
  say "the copy failed; again in $TPU_RETRY_SECONDS s"
  pause "$TPU_RETRY_SECONDS"
  is_usable || fail "$EXIT_NO_TPU" "$TPU_NAME is $STATE."
  copy || fail "$EXIT_CLOUD" "cannot copy to the workers of $TPU_NAME."
fi

unpack="rm -rf rlhf_jax.new && mkdir rlhf_jax.new &&
tar -xzf $archive -C rlhf_jax.new && rm $archive || exit
exec bash rlhf_jax.new/tpu_scripts/worker.sh install \"\$@\""
retried="[ -f $archive ] || exec bash $WORKER_SCRIPT install \"\$@\"; $unpack"

finish_step() {  # finish_step KEY GOOD: all workers must have answered GOOD
  local reply bad=0
  while read -r reply; do
    [ "$(field "$1" "$reply")" != "$2" ] || continue
    say "$(host_of "$reply"): ${reply#@worker * }"
    bad=1
  done <<<"$REPLIES"
  ((bad == 0)) || {
    grep -v '^@worker ' <<<"$OUTPUT" | tail -n 20 | sed 's/^/    /' || true
    fail "$EXIT_SETUP" "$TPU_NAME: set-up failed, see above."
  }
}

stop_unanswered() {
  unanswered
  [ "$STATE" = ACTIVE ] || exit "$EXIT_NO_TPU"
  exit "$EXIT_CLOUD"
}

say "install uv, Python 3.12 and .[tpu]; this takes minutes"
command_on_workers "$(quoted bash -c "$retried" install "$commit" \
  "${TPU_NO_GCSFUSE:-0}")" || stop_unanswered
finish_step install "done"
if [ -z "$TPU_NO_CHECK" ]; then
  say "start JAX on all workers"
  on_workers chips || stop_unanswered
  finish_step chips ok
  expected=$(($(devices_of "$TYPE") * ${#NODES[@]}))
  reply=$(head -n 1 <<<"$REPLIES")
  devices=$(field devices "$reply")
  processes=$(field processes "$reply")
  ((processes == WORKERS)) || fail "$EXIT_SETUP" \
    "JAX sees $processes of $WORKERS workers."
  ((expected == 0 || devices == expected)) || fail "$EXIT_SETUP" \
    "JAX sees $devices devices; ${#NODES[@]} x $TYPE has $expected."
  say "JAX sees $devices devices in $processes processes"
fi
say "ready: run.sh --name=$TPU_NAME --zone=$TPU_ZONE --config=... --workdir=..."
