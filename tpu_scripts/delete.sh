#!/usr/bin/env bash
# Deletes one slice, or all that one owner created, after asking.
#
#   delete.sh --name=my-tpu --zone=us-east5-b
#   delete.sh --all --zones=us-east5-b,europe-west4-a
#
#   --name=... --zone=...  TPU_NAME, TPU_ZONE    one
#   --all                  TPU_ALL=1   all queued resources of the owner
#   --zones=...            TPU_ZONES   where; all means all that have TPUs
#   --owner=$USER          TPU_OWNER   the label of create.sh
#   --project=...          TPU_PROJECT
#   --yes                  TPU_YES=1   do not ask
#   --dry-run              TPU_DRY_RUN=1
#
# A name is looked for among queued resources, then among TPU VMs. --all leaves
# alone what create.sh did not make. Nothing in a bucket is deleted.
# Exit codes: 0 gone, 2 mistake or not confirmed, 12 something is still there.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

: "${TPU_OWNER:=$(id -un | tr 'A-Z.' 'a-z_')}"
parse "${COMMON[@]}" zones=TPU_ZONES all!TPU_ALL owner=TPU_OWNER yes!TPU_YES \
  dry-run!TPU_DRY_RUN -- "$@"

doomed=()  # "zone kind name"
if [ -n "$TPU_ALL" ]; then
  check_tools
  need zones TPU_ZONES "where to look"
  # shellcheck disable=SC2153
  listed=$("$HERE/list.sh" --raw --zones="$TPU_ZONES") || exit "$?"
  while IFS=, read -r zone kind name _ _ state owner; do
    [ -n "$zone" ] || continue
    if [ "$owner" = "$TPU_OWNER" ] && [ "$kind" = queued-resource ]; then
      doomed+=("$zone $kind $name")
    else
      say "left alone: $name in $zone ($kind, $state, owner $owner)"
    fi
  done <<<"$listed"
else
  check_common
  read_state
  case $STATE in
    UNREADABLE) fail "$EXIT_CLOUD" "$TPU_NAME: cannot be read. $WHY" ;;
    NONE)
      if tpus tpu-vm describe "$TPU_NAME" --format='value(state)' \
        >/dev/null 2>&1; then
        doomed+=("$TPU_ZONE tpu-vm $TPU_NAME")
      fi
      ;;
    *) doomed+=("$TPU_ZONE queued-resource $TPU_NAME") ;;
  esac
fi
if ((${#doomed[@]} == 0)); then
  say "nothing to delete"
  exit 0
fi

say "delete, with everything on their disks:"
printf '    %s\n' "${doomed[@]}"
if [ -z "$TPU_YES" ] && [ -z "$TPU_DRY_RUN" ]; then
  read -r -p "Type yes to delete ${#doomed[@]}: " answer || answer=''
  [ "$answer" = yes ] || mistake "not confirmed; nothing was deleted."
fi
left=0
for entry in "${doomed[@]}"; do
  read -r TPU_ZONE kind TPU_NAME <<<"$entry"
  if [ "$kind" = tpu-vm ]; then
    cloud tpu-vm delete "$TPU_NAME" --quiet || left=1
  else
    cloud queued-resources delete "$TPU_NAME" --force --quiet || left=1
  fi
  [ -z "$TPU_DRY_RUN" ] || continue
  read_state
  [ "$STATE" = NONE ] || {
    say "$TPU_NAME in $TPU_ZONE is still there: $STATE $WHY"
    left=1
  }
done
((left == 0)) || fail "$EXIT_CLOUD" "not everything is gone; run it again."
[ -n "$TPU_DRY_RUN" ] || say "gone"
