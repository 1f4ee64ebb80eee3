#!/usr/bin/env bash
# Shows the state of a slice and, for each worker, of the run started last.
#
#   status.sh --name=my-tpu --zone=us-east5-b
#
#   --name=... --zone=...   TPU_NAME, TPU_ZONE
#   --project=... --ssh=... TPU_PROJECT, TPU_SSH
#
# running; exited with its code; lost: ended without one (machine restarted);
# idle: nothing was started. Only the first process reports progress.
# Exit codes: 0, 2 mistake, 10 not ACTIVE, 12 some workers do not answer.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse "${COMMON[@]}" -- "$@"
check_common
read_state
if [ "$STATE" != ACTIVE ]; then
  case $STATE in
    FAILED | SUSPEND*) explain_state ;;
    *) say "$TPU_NAME in $TPU_ZONE is $STATE. $WHY" ;;
  esac
  exit "$EXIT_NO_TPU"
fi
read_shape
say "$TPU_NAME in $TPU_ZONE: $STATE, ${#NODES[@]} x $TYPE, $WORKERS workers"
answered=0
on_workers status || answered=$EXIT_CLOUD
row='%-28s %-8s %-16s %-5s %-12s %s\n'
# shellcheck disable=SC2059
printf "$row" WORKER STATE RUN CODE COMMIT PROGRESS
while read -r reply; do
  [ -n "$reply" ] || continue
  # shellcheck disable=SC2059
  printf "$row" "$(host_of "$reply")" "$(field state "$reply")" \
    "$(field run "$reply")" "$(field code "$reply")" \
    "$(field commit "$reply")" "$(field progress "$reply")"
done <<<"$REPLIES"
((answered == 0)) || unanswered
exit "$answered"
