#!/usr/bin/env bash
# Shows the log of a run on one worker.
#
#   logs.sh --name=my-tpu --zone=us-east5-b --run=ppo --follow
#
#   --name=... --zone=...   TPU_NAME, TPU_ZONE
#   --project=... --ssh=... TPU_PROJECT, TPU_SSH
#   --run=...               TPU_RUN     or --workdir=..., whose last part it is
#   --worker=0 --node=0     TPU_WORKER, TPU_NODE   one number each
#   --lines=50              TPU_LINES
#   --follow                TPU_FOLLOW=1   until Ctrl-C; the run goes on
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

: "${TPU_WORKER:=0}" "${TPU_NODE:=0}" "${TPU_LINES:=50}"
parse "${COMMON[@]}" run=TPU_RUN workdir=TPU_WORKDIR worker=TPU_WORKER \
  node=TPU_NODE lines=TPU_LINES follow!TPU_FOLLOW -- "$@"
check_common
[ -n "$TPU_RUN" ] || TPU_RUN=$(basename "$TPU_WORKDIR")
need run TPU_RUN "as given to run.sh"
for number in "$TPU_WORKER" "$TPU_NODE" "$TPU_LINES"; do
  [[ $number =~ ^[0-9]+$ ]] ||
    mistake "$number: --worker, --node and --lines take one number."
done
command=(bash "$WORKER_SCRIPT" log "$TPU_RUN" "$TPU_LINES")
[ -z "$TPU_FOLLOW" ] || command+=(follow)
flag=$(ssh_flags)
say "log of $TPU_RUN on worker $TPU_WORKER of node $TPU_NODE of $TPU_NAME"
tpus queued-resources ssh "$TPU_NAME" --worker="$TPU_WORKER" \
  --node="$TPU_NODE" ${flag:+"$flag"} --command="$(quoted "${command[@]}")" \
  </dev/null || {
  read_state
  fail "$EXIT_CLOUD" "cannot show the log; $TPU_NAME is $STATE."
}
