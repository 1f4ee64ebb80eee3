#!/usr/bin/env bash
# Lists what costs money: queued resources, and TPU VMs made without one.
#
#   list.sh --zones=us-east5-b,europe-west4-a
#   list.sh --zones=all
#
#   --zones=...    TPU_ZONES (or TPU_ZONE)   zones, or all that have TPUs
#   --project=...  TPU_PROJECT
#   --raw          TPU_RAW=1   ZONE,KIND,NAME,TYPE,NODES,STATE,OWNER lines only
#
# OWNER is the label of create.sh, - if it was made in another way. FAILED and
# SUSPENDED cost nothing, but keep their names. Buckets are not listed.
# Exit codes: 0, 2 mistake, 12 a zone could not be read.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse zones=TPU_ZONES zone=TPU_ZONE project=TPU_PROJECT raw!TPU_RAW -- "$@"
check_tools
[ -n "$TPU_ZONES" ] || TPU_ZONES=$TPU_ZONE
need zones TPU_ZONES "such as us-east5-b,europe-west4-a, or all"
if [ "$TPU_ZONES" = all ]; then
  TPU_ZONES=$(gcloud compute tpus locations list \
    --format='value(locationId)' ${TPU_PROJECT:+--project="$TPU_PROJECT"} |
    paste -s -d , -) || fail "$EXIT_CLOUD" "cannot list the zones with TPUs."
fi

say_row() { printf '%-18s %-15s %-28s %-14s %-6s %-22s %s\n' "$@"; }

costly=0
unread=()
[ -n "$TPU_RAW" ] || say_row ZONE KIND NAME TYPE NODES STATE OWNER

show() {  # one line "NAME,TYPE,NODES,STATE,OWNER" of a kind
  local name type nodes state owner
  while IFS=, read -r name type nodes state owner; do
    [ -n "$name" ] || continue
    if [ -n "$TPU_RAW" ]; then
      echo "$TPU_ZONE,$1,$name,$type,$nodes,$state,${owner:--}"
    else
      say_row "$TPU_ZONE" "$1" "$name" "$type" "$nodes" "$state" "${owner:--}"
    fi
    case $state in
      FAILED | SUSPENDED | PREEMPTED | TERMINATED) ;;
      *) ((++costly)) ;;
    esac
  done <<<"$2"
}

IFS=, read -r -a zones <<<"$TPU_ZONES"
for TPU_ZONE in "${zones[@]}"; do
  if queued=$(tpus queued-resources list --format='csv[no-heading](
    name.basename(), tpu.nodeSpec[0].node.acceleratorType.basename(),
    tpu.nodeSpec.len(), state.state,
    tpu.nodeSpec[0].node.labels.rlhf_jax)') &&
    single=$(tpus tpu-vm list --filter='-queuedResource:*' \
      --format='csv[no-heading](name.basename(), acceleratorType.basename(),
      networkEndpoints.len(), state, labels.rlhf_jax)'); then
    show queued-resource "$queued"
    show tpu-vm "$single"
  else
    unread+=("$TPU_ZONE")
  fi
done
[ -n "$TPU_RAW" ] || say "$costly of these may cost money now. delete.sh" \
  "deletes one, or all that are yours."
((${#unread[@]} == 0)) ||
  fail "$EXIT_CLOUD" "could not read: ${unread[*]}. There may be more."
