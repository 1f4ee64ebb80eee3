#!/usr/bin/env bash
# Runs the program to its end on a slice that may be taken away: creates the
# slice, sets it up, starts the program, and does so again after a preemption.
#
#   watch.sh --name=my-tpu --zone=us-east5-b --type=v6e-8 --provisioning=spot \
#     --config=configs/ppo.py --workdir=gs://my-bucket/ppo -- --config.seed=1
#
#   all flags of create.sh, setup.sh and run.sh; and
#   --max-restarts=20   TPU_MAX_RESTARTS     preemptions and restarts together
#   --delete            TPU_DELETE=1         delete the slice at the end
#   --grace=120         TPU_GRACE_SECONDS    for the others when one has ended
#   --poll=30           TPU_POLL_SECONDS     between looks
#   --dry-run           TPU_DRY_RUN=1        check all of it, run nothing
#   --retry-failed      TPU_RETRY_FAILED=1   start RUN although it has failed
#                       on this slice with this commit, before this watch
#
# What ends a process decides what happens:
#   0 on all workers                    done
#   1 bug, 2 mistake, 3 diverged,       stop and say so: never tried again
#     or any other exit code
#   42 a peer died, 75 stopped with     start all workers again; but stop
#     a checkpoint, killed, or lost     when it ends three times in a row at
#     with its machine                  the same step of machines that stay
#   SUSPENDED, PREEMPTED, FAILED        delete, create, set up, start again
# The commit is the one of the beginning. If the slice runs RUN already, watch
# follows it. Ctrl-C ends the watching only. A slice that somebody deleted is
# not created again.
# Exit codes: the program's; 10 no TPU, 11 too many restarts, 12 no answer,
# 13 set-up failed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

: "${TPU_MAX_RESTARTS:=20}" "${TPU_GRACE_SECONDS:=120}" "${TPU_COMMIT:=HEAD}"
: "${TPU_NODES:=1}" "${TPU_VALID_UNTIL:=6h}"
parse "${COMMON[@]}" type=TPU_TYPE provisioning=TPU_PROVISIONING \
  nodes=TPU_NODES runtime=TPU_RUNTIME valid-until=TPU_VALID_UNTIL \
  service-account=TPU_SERVICE_ACCOUNT network=TPU_NETWORK \
  subnetwork=TPU_SUBNETWORK internal-ips!TPU_INTERNAL_IPS owner=TPU_OWNER \
  commit=TPU_COMMIT no-gcsfuse!TPU_NO_GCSFUSE no-check!TPU_NO_CHECK \
  config=TPU_CONFIG workdir=TPU_WORKDIR run=TPU_RUN direct!TPU_DIRECT \
  local!TPU_LOCAL max-restarts=TPU_MAX_RESTARTS delete!TPU_DELETE \
  retry-failed!TPU_RETRY_FAILED dry-run!TPU_DRY_RUN \
  grace=TPU_GRACE_SECONDS poll=TPU_POLL_SECONDS -- "$@"
[ -n "$TPU_OWNER" ] || unset TPU_OWNER
check_common
need type TPU_TYPE "such as v6e-8"
need provisioning TPU_PROVISIONING "spot, reserved or on-demand"
check_program "${REST[@]}"
for number in "$TPU_MAX_RESTARTS" "$TPU_GRACE_SECONDS"; do
  [[ $number =~ ^[0-9]+$ ]] ||
    mistake "$number: --max-restarts and --grace must be whole numbers."
done
TPU_COMMIT=$(git -C "$HERE" rev-parse --verify --quiet \
  "$TPU_COMMIT^{commit}") ||
  mistake "--commit: no such commit in $(dirname "$HERE")."
TPU_DRY_RUN=1 "$HERE/create.sh" >/dev/null  # refuses what it would refuse later
overrides=("${REST[@]}")
restarts=0
if [ -n "$TPU_DRY_RUN" ]; then
  say "$TPU_RUN on $TPU_NAME: nothing to complain about"
  exit 0
fi
is_created=''  # whether the slice was there before
stuck_at='' stuck=0  # how often the run ended at this step, in a row

finish() {  # finish CODE MESSAGE
  say "$TPU_RUN: $2"
  if [ -n "$TPU_DELETE" ]; then
    "$HERE/delete.sh" --yes || say "DELETE $TPU_NAME YOURSELF: it costs money."
  elif [ "$STATE" != NONE ]; then
    say "$TPU_NAME ($STATE) may cost money: delete.sh --name=$TPU_NAME" \
      "--zone=$TPU_ZONE"
  fi
  exit "$1"
}

count_restart() {  # count_restart REASON
  ((++restarts <= TPU_MAX_RESTARTS)) || finish "$EXIT_RESTARTS" \
    "$1, after $TPU_MAX_RESTARTS restarts. Not tried again."
  say "$TPU_RUN: $1; restart $restarts of $TPU_MAX_RESTARTS"
}

child=''
run_child() {  # so that a signal reaches it: create.sh cleans up
  local code=0
  "$@" &
  child=$!
  wait "$child" || code=$?
  child=''
  return "$code"
}

leave() {
  trap '' INT TERM HUP
  if [ -n "$child" ]; then
    kill "$child" 2>/dev/null || true
    wait "$child" || true
  fi
  say "watching ends; what runs goes on and costs money"
  exit "$1"
}
trap 'leave 130' INT
trap 'leave 143' TERM HUP

create() {
  local code=0
  run_child "$HERE/create.sh" || code=$?
  case $code in
    0) is_created=1 ;;
    "$EXIT_MISTAKE")
      finish "$EXIT_NO_TPU" "$TPU_NAME was refused. Not tried again."
      ;;
    *)
      count_restart "$TPU_NAME could not be created"
      pause "$TPU_RETRY_SECONDS"
      ;;
  esac
}

# Returns once the slice is ACTIVE, whatever it is now.
obtain() {
  local missing=0
  while :; do
    read_state
    case $STATE in
      ACTIVE)
        is_created=1
        if read_shape 2>/dev/null && is_usable; then
          return
        fi
        case $STATE in
          PREEMPTED | TERMINATED | STOP* | HIDDEN)
            count_restart "a node of $TPU_NAME is $STATE"
            replace
            ;;
          *) wait_a_little ;;
        esac
        ;;
      NONE)
        [ -z "$is_created" ] || finish "$EXIT_NO_TPU" \
          "somebody deleted $TPU_NAME; not created again."
        create
        ;;
      FAILED | SUSPENDING | SUSPENDED)
        explain_state
        count_restart "$TPU_NAME is $STATE"
        replace
        ;;
      DELETING | UNREADABLE) wait_a_little ;;
      *) wait_until_active || true ;;
    esac
  done
}

wait_a_little() {  # ten times at most
  ((++missing <= 10)) ||
    finish "$EXIT_CLOUD" "$TPU_NAME is still $STATE. $WHY"
  pause "$TPU_RETRY_SECONDS"
}

replace() {  # deletes what is left of the slice
  cloud queued-resources delete "$TPU_NAME" --force --quiet ||
    say "could not delete $TPU_NAME"
  is_created='' stuck=0
  pause "$TPU_POLL_SECONDS"
}

set_up() {
  local code=0
  run_child "$HERE/setup.sh" || code=$?
  case $code in
    0) return ;;
    "$EXIT_MISTAKE") finish "$EXIT_SETUP" "not set up." ;;
    "$EXIT_SETUP") ! is_usable || finish "$code" "the set-up failed." ;;
  esac
  count_restart "$TPU_NAME could not be set up"
  return 1
}

start() {
  local code=0
  run_child "$HERE/run.sh" -- "${overrides[@]}" || code=$?
  case $code in
    0) return ;;
    "$EXIT_MISTAKE") finish "$code" "not started." ;;
    "$EXIT_SETUP") ! is_usable || finish "$code" "could not be started." ;;
  esac
  count_restart "$TPU_RUN could not be started"
  return 1
}

# Sets the counts and codes of the last replies.
tally() {
  local reply code line state
  running=0 ended=0 good=0 lost=0 stopping=0 bad='' soft='' reason='' \
    shown='' others='' commit=same
  while read -r reply; do
    code=$(field code "$reply")
    state=$(field state "$reply")
    [ "$state:$(field run "$reply")" != "exited:$TPU_RUN" ] || state=ended
    [ "$(field stopping "$reply")" != 1 ] || stopping=1
    [[ $TPU_COMMIT = "$(field commit "$reply")"* ]] || commit=other
    line=$(field progress "$reply")
    [[ -n $shown && ! $line =~ [0-9]/[0-9]+\ +[0-9]+% ]] || shown=$line
    case $state in
      running)
        ((++running))
        [ "$(field run "$reply")" = "$TPU_RUN" ] || others=1
        ;;
      ended)
        ((++ended))
        case $code in
          0) ((++good)) ;;
          42 | 75) soft=$code reason=$(meaning "$code") ;;
          *)
            if ((code > 128)); then
              soft=$code reason="$(host_of "$reply") was $(meaning "$code")"
            elif [ -z "$bad" ] || ((code > 1 && code < 4)); then
              bad=$code where=$(host_of "$reply")  # 2 and 3 say more than 1
            fi
            ;;
        esac
        ;;
      *) ((++lost)) && reason="$(host_of "$reply") lost its process" ;;
    esac
  done <<<"$REPLIES"
}

fail_for_good() {
  local flag
  flag=$(ssh_flags)
  say "the last lines of $where:"
  tpus queued-resources ssh "$TPU_NAME" --worker=all --node=all \
    ${flag:+"$flag"} --command="$(quoted bash "$WORKER_SCRIPT" last \
      "$TPU_RUN" 15 "$where")" 2>/dev/null </dev/null | sed 's/^/    /' || true
  on_workers end 30 || true
  finish "$bad" "ended on $where with $bad: $(meaning "$bad"). Not restarted."
}

# Counts an end on machines that stayed: the same end at the same step, three
# times in a row, is a failure of the program (no memory) and no preemption.
count_stuck() {
  local step=''
  [[ ! $shown =~ [0-9]+/[0-9]+ ]] || step=${BASH_REMATCH[0]}
  if [ "$step" = "$stuck_at" ]; then ((++stuck)); else stuck=1; fi
  stuck_at=$step
  ((stuck < 3)) || finish "${soft:-137}" \
    "${reason:-ended} three times in a row at step ${step:-0}. Not restarted."
}

# Follows the processes; returns when they have to be started again.
follow() {
  local before='' line waited=0 unheard=0
  while :; do
    if ! on_workers status; then
      unanswered
      [ "$STATE" = ACTIVE ] || return 0
      if ((++unheard < 5)) && ! is_code_missing; then
        continue
      fi
      count_restart "workers of $TPU_NAME do not answer"
      on_workers end 30 || true
      needs_setup=1
      return
    fi
    unheard=0
    tally
    line="$running of $WORKERS running  $shown"
    if [ "$line" != "$before" ]; then
      say "$TPU_RUN: $line"
      before=$line
    fi
    [ -z "$bad" ] || fail_for_good
    if ((good == WORKERS)); then
      finish 0 "done."
    elif ((running == 0 && stopping)); then
      finish 75 "was asked to stop (run.sh --stop); a checkpoint is saved."
    elif ((running == 0 || (running < WORKERS && good < ended + lost &&
      waited >= TPU_GRACE_SECONDS))); then
      break
    fi
    ((running == WORKERS)) || waited=$((waited + ${TPU_POLL_SECONDS%%.*} + 1))
    pause "$TPU_POLL_SECONDS"
  done
  # A machine that is taken back first stops its processes.
  say "$TPU_RUN: ${reason:-ended}; looking at $TPU_NAME again in" \
    "$TPU_RETRY_SECONDS s"
  pause "$TPU_RETRY_SECONDS"
  if is_usable; then
    on_workers end 30 || true
    if on_workers status; then
      tally  # one that was slow to say that it failed
      [ -z "$bad" ] || fail_for_good
    fi
    count_stuck
    count_restart "${reason:-ended on some workers}"
  fi
}

say "watch $TPU_RUN on $TPU_NAME, commit ${TPU_COMMIT:0:12}"
needs_setup=''
while :; do
  obtain
  if [ -z "$needs_setup" ]; then
    command_on_workers "$(quoted bash -c \
      "[ -f $WORKER_SCRIPT ] && exec bash $WORKER_SCRIPT status
echo @worker \$(hostname) state=idle commit=-")" || {
      count_restart "$TPU_NAME does not answer ($STATE)"
      continue
    }
    tally
    if ((running > 0)) && [ -n "$others" ]; then
      mistake "$TPU_NAME: runs something else. See status.sh."
    elif ((running > 0)); then
      say "$TPU_RUN runs already; following it"
      follow
      continue
    fi
    if [ "$commit" = other ]; then
      needs_setup=1
    elif [ -n "$bad" ] && [ -z "$TPU_RETRY_FAILED" ]; then
      say "it failed before this watch; --retry-failed starts it again"
      fail_for_good
    fi
  fi
  if [ -n "$needs_setup" ]; then
    set_up || continue
    needs_setup=''
  fi
  TPU_RETRY_FAILED=''  # of what comes now, no failure is tried again
  start || continue
  follow
done
