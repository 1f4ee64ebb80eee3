#!/usr/bin/env bash
# Requests a TPU slice, or several, and waits until it is ACTIVE.
#
#   create.sh --name=my-tpu --zone=us-east5-b --type=v6e-8 --provisioning=spot
#
#   --name=...          TPU_NAME           of the queued resource
#   --zone=...          TPU_ZONE
#   --project=...       TPU_PROJECT        gcloud's own setting if not given
#   --type=...          TPU_TYPE           v6e-8; generations: see --runtime
#   --provisioning=...  TPU_PROVISIONING   spot, reserved or on-demand
#   --nodes=1           TPU_NODES          slices; more than 1 is multislice
#   --runtime=...       TPU_RUNTIME        VM image; default by generation:
#                       v2 v3 v4   tpu-ubuntu2204-base
#                       v5litepod  v2-alpha-tpuv5-lite      (v5e)
#                       v5p        v2-alpha-tpuv5
#                       v6e        v2-alpha-tpuv6e
#                       tpu7x      v2-alpha-tpu7-ubuntu2404
#   --valid-until=6h    TPU_VALID_UNTIL    the request FAILS if not met by then
#   --service-account=  TPU_SERVICE_ACCOUNT
#   --network= --subnetwork=   TPU_NETWORK, TPU_SUBNETWORK
#   --internal-ips      TPU_INTERNAL_IPS=1 no external addresses (needs NAT)
#   --owner=$USER       TPU_OWNER          label rlhf_jax=OWNER, see delete.sh
#   --dry-run           TPU_DRY_RUN=1      print the command, run nothing
#   -- ...              further flags of gcloud, such as reservation names
#
# If it fails or is interrupted before ACTIVE, what it requested is deleted.
# Of TPU7x Google says that it is for GKE and Compute Engine: only some
# projects can create it this way. Put nothing secret among the flags.
# Exit codes: 0 ACTIVE, 2 mistake, 10 no TPU, 12 gcloud does not answer.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

: "${TPU_NODES:=1}" "${TPU_VALID_UNTIL:=6h}"
: "${TPU_OWNER:=$(id -un | tr 'A-Z.' 'a-z_')}"
parse "${COMMON[@]}" type=TPU_TYPE provisioning=TPU_PROVISIONING \
  nodes=TPU_NODES runtime=TPU_RUNTIME valid-until=TPU_VALID_UNTIL \
  service-account=TPU_SERVICE_ACCOUNT network=TPU_NETWORK \
  subnetwork=TPU_SUBNETWORK internal-ips!TPU_INTERNAL_IPS owner=TPU_OWNER \
  dry-run!TPU_DRY_RUN -- "$@"
check_common
need type TPU_TYPE "such as v6e-8"
need provisioning TPU_PROVISIONING "spot, reserved or on-demand"
[[ $TPU_TYPE =~ -[1-9][0-9]*$ ]] ||
  mistake "--type=$TPU_TYPE: must end in a number, such as v6e-8."
[[ $TPU_NODES =~ ^[1-9][0-9]*$ ]] ||
  mistake "--nodes=$TPU_NODES: must be a number >= 1."
[[ $TPU_VALID_UNTIL =~ ^[1-9][0-9]*[smhd]$ ]] ||
  mistake "--valid-until=$TPU_VALID_UNTIL: must be like 90m or 6h."
[[ $TPU_OWNER =~ ^[a-z0-9_-]{1,63}$ ]] ||
  mistake "--owner=$TPU_OWNER: must be lower-case letters, digits, _ and -."
[ -n "$TPU_RUNTIME" ] || TPU_RUNTIME=$(runtime_of "$TPU_TYPE")

flags=(--accelerator-type="$TPU_TYPE" --runtime-version="$TPU_RUNTIME"
  --valid-until-duration="$TPU_VALID_UNTIL" --labels="rlhf_jax=$TPU_OWNER")
if ((TPU_NODES > 1)); then
  flags+=(--node-count="$TPU_NODES" --node-prefix="$TPU_NAME")
else
  flags+=(--node-id="$TPU_NAME")
fi
case $TPU_PROVISIONING in
  spot) flags+=(--spot) ;;
  reserved) flags+=(--reserved) ;;
  on-demand) ;;
  *)
    mistake "--provisioning=$TPU_PROVISIONING: must be spot, reserved or
on-demand."
    ;;
esac
[ -z "$TPU_SERVICE_ACCOUNT" ] ||
  flags+=(--service-account="$TPU_SERVICE_ACCOUNT")
[ -z "$TPU_NETWORK" ] || flags+=(--network="$TPU_NETWORK")
[ -z "$TPU_SUBNETWORK" ] || flags+=(--subnetwork="$TPU_SUBNETWORK")
[ -z "$TPU_INTERNAL_IPS" ] || flags+=(--internal-ips)
refuse_secrets "${REST[@]}"
flags+=("${REST[@]}")

[[ $TPU_TYPE != tpu7x-* ]] ||
  say "WARNING: Google supports TPU7x in GKE and Compute Engine, not here"
say "create $TPU_NAME: $TPU_NODES x $TPU_TYPE ($TPU_PROVISIONING) in $TPU_ZONE"
if [ -n "$TPU_DRY_RUN" ]; then
  cloud queued-resources create "$TPU_NAME" "${flags[@]}"
  exit 0
fi
read_state
case $STATE in
  NONE) ;;
  UNREADABLE) fail "$EXIT_CLOUD" "$TPU_NAME: cannot be read. $WHY" ;;
  *) mistake "--name=$TPU_NAME: exists already, $STATE. Use it, choose another
name, or run delete.sh --name=$TPU_NAME --zone=$TPU_ZONE." ;;
esac

requested=''
clean_up() {
  local code=$?
  trap - EXIT
  trap '' INT TERM
  if [ -n "$requested" ]; then
    say "deleting what was requested"
    cloud queued-resources delete "$TPU_NAME" --force --quiet ||
      say "IT MAY STILL EXIST AND COST MONEY: run the line above again."
  fi
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

requested=1
if ! output=$(cloud queued-resources create "$TPU_NAME" "${flags[@]}" 2>&1)
then
  echo "$output" >&2
  if grep -q ALREADY_EXISTS <<<"$output"; then
    requested=''  # somebody else's
  elif grep -qE 'UNAVAILABLE|INTERNAL|DEADLINE|EXHAUSTED' <<<"$output"; then
    fail "$EXIT_NO_TPU" "$TPU_NAME: the request failed; it may succeed later."
  fi
  mistake "$TPU_NAME: gcloud refused the request, see above."
fi
echo "$output"
wait_until_active || exit "$?"
requested=''
say "ACTIVE. It costs money until delete.sh --name=$TPU_NAME" \
  "--zone=$TPU_ZONE"
