#!/usr/bin/env bash
# Shared by the commands of this folder; sourced, never run.
#
# Settings come from flags (--zone=Z) or the environment (TPU_ZONE=Z). What
# changes something in the cloud is printed before it runs (`cloud`); what only
# reads is not (`tpus`). Every answer of a worker is one line, "@worker HOST
# key=value ...", and answers are counted: gcloud leaves out a node that it
# cannot reach and still exits with 0.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash $BASH_VERSION: needs 4.4 or newer (macOS: brew install" \
    "bash)." >&2
  exit 2
fi

# Exit codes. 0, 1, 2, 3, 42 and 75 are the program's (rlhf_jax/main.py).
EXIT_MISTAKE=2     # in the command
EXIT_NO_TPU=10     # the resource failed, was suspended or preempted
EXIT_RESTARTS=11   # as many restarts as were allowed
EXIT_CLOUD=12      # gcloud or ssh does not answer
EXIT_SETUP=13      # a worker could not be set up

: "${TPU_RETRY_SECONDS:=60}"  # after a failed ssh: the state lags by a minute
: "${TPU_POLL_SECONDS:=30}"   # between looks at a state
: "${TPU_SSH:=external}"      # external, internal (same network) or iap
WORKER_SCRIPT=rlhf_jax/tpu_scripts/worker.sh  # below a worker's home
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034
COMMON=(name=TPU_NAME zone=TPU_ZONE project=TPU_PROJECT ssh=TPU_SSH)

say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }

fail() {  # fail CODE MESSAGE...
  printf 'error: %s\n' "${*:2}" >&2
  exit "$1"
}

mistake() { fail "$EXIT_MISTAKE" "$@"; }

usage() {  # the comment at the top of the command
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
}

quoted() {  # the arguments as one line that a shell reads back as they are
  local line
  line=$(printf '%q ' "$@")
  printf '%s' "${line% }"
}

pause() {  # sleeps; a signal is handled at once
  sleep "$1" >/dev/null 2>&1 3>&- &
  wait "$!"
}

# parse SPEC... -- ARGUMENT...
# A spec is flag=VARIABLE, or flag!VARIABLE for a switch that sets 1. What
# follows a -- among the arguments is left in REST.
parse() {
  local -A values=() switches=()
  local variable flag
  REST=()
  while [ "$1" != -- ]; do
    case $1 in
      *=*) values[${1%%=*}]=${1#*=} ;;
      *!*) switches[${1%%!*}]=${1#*!} ;;
    esac
    shift
  done
  shift
  for variable in "${values[@]}" "${switches[@]}"; do
    [ -v "$variable" ] || printf -v "$variable" ''
    export "${variable?}"
  done
  while (($#)); do
    flag=${1#--}
    flag=${flag%%=*}
    case $1 in
      -h | --help) usage && exit 0 ;;
      --)
        shift
        REST=("$@")
        return
        ;;
      --*=*)
        [ -n "${values[$flag]-}" ] || _unknown "$1"
        printf -v "${values[$flag]}" '%s' "${1#*=}"
        ;;
      --?*)
        [ -z "${values[$flag]-}" ] ||
          mistake "--$flag: takes a value. Write --$flag=VALUE."
        [ -n "${switches[$flag]-}" ] || _unknown "$1"
        printf -v "${switches[$flag]}" 1
        ;;
      *) _unknown "$1" ;;
    esac
    shift
  done
}

_unknown() { mistake "$1: not known here. See ${0##*/} --help."; }

need() {  # need FLAG VARIABLE MEANING
  [ -n "${!2}" ] || mistake "--$1: is missing ($3). Write --$1=... or set $2."
}

check_common() {  # what every command on one resource needs
  need name TPU_NAME "the queued resource"
  need zone TPU_ZONE "such as us-east5-b"
  check_tools
  [[ $TPU_NAME =~ ^[a-z][a-z0-9-]{0,60}$ ]] ||
    mistake "--name=$TPU_NAME: must be lower-case letters, digits and dashes."
}

check_tools() {
  command -v gcloud >/dev/null ||
    mistake "gcloud: not found. Install the Google Cloud CLI, then run" \
      "\`gcloud auth login\`."
  case $TPU_SSH in
    external | internal | iap) ;;
    *) mistake "--ssh=$TPU_SSH: must be external, internal or iap." ;;
  esac
}

tpus() {  # gcloud compute tpus ... in the zone and project
  gcloud compute tpus "$@" --zone="$TPU_ZONE" \
    ${TPU_PROJECT:+--project="$TPU_PROJECT"}
}

cloud() {  # the same for what changes something: printed first
  printf '  + gcloud compute tpus %s\n' "$(quoted "$@" --zone="$TPU_ZONE" \
    ${TPU_PROJECT:+--project="$TPU_PROJECT"})"
  [ -n "${TPU_DRY_RUN-}" ] || tpus "$@"
}

# --- generations ------------------------------------------------------------

runtime_of() {  # the VM image of an accelerator type
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    tpu7x-*) echo v2-alpha-tpu7-ubuntu2404 ;;
    v5e-*) mistake "--type=$1: v5e is called v5litepod-${1#*-}." ;;
    *)
      mistake "--type=$1: must be v2-N, v3-N, v4-N, v5litepod-N, v5p-N, v6e-N" \
        "or tpu7x-N. Of others, give --runtime too."
      ;;
  esac
}

devices_of() {  # how many devices JAX sees on one slice of a type
  case $1 in
    v4-* | v5p-*) echo $((${1##*-} / 2)) ;;  # N counts cores, two a chip
    v5litepod-* | v6e-*) echo "${1##*-}" ;;  # N counts chips
    v2-* | v3-* | tpu7x-*) echo "${1##*-}" ;;  # cores, each a device
    *) echo 0 ;;                             # not known: not checked
  esac
}

# --- the resource -----------------------------------------------------------

# Sets STATE (gcloud's word, NONE, or UNREADABLE) and WHY.
read_state() {
  local output
  WHY=''
  if output=$(tpus queued-resources describe "$TPU_NAME" \
    --format='value(state.state)' 2>&1); then
    STATE=$(grep -E '^[A-Z_]+$' <<<"$output" | tail -n 1) || STATE=UNREADABLE
  elif grep -qE 'NOT_FOUND|not found' <<<"$output"; then
    STATE=NONE
  else
    STATE=UNREADABLE
  fi
  [ "$STATE" != UNREADABLE ] || WHY=$(tail -n 3 <<<"$output")
}

# Sets TYPE, NODES (their names) and WORKERS (of all nodes together).
# shellcheck disable=SC2034
read_shape() {
  local nodes endpoints
  TYPE=$(tpus queued-resources describe "$TPU_NAME" \
    --format='value(tpu.nodeSpec[0].node.acceleratorType.basename())') ||
    return
  nodes=$(tpus queued-resources describe "$TPU_NAME" \
    --format='value[delimiter=","](tpu.nodeSpec[].nodeId)') || return
  IFS=', ;' read -r -a NODES <<<"$nodes"
  endpoints=$(tpus tpu-vm describe "${NODES[0]}" \
    --format='value(networkEndpoints.len())') || return
  [[ $endpoints =~ ^[1-9][0-9]*$ ]] || return
  WORKERS=$((endpoints * ${#NODES[@]}))
}

# Says whether the resource and all of its nodes can be used; sets STATE. The
# state of a preempted node changes before that of its resource.
is_usable() {
  local node node_state
  read_state
  [ "$STATE" = ACTIVE ] || return 1
  for node in "${NODES[@]}"; do
    node_state=$(tpus tpu-vm describe "$node" --format='value(state)' 2>&1) ||
      node_state=UNREADABLE
    case $node_state in
      PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | HIDDEN)
        STATE=$node_state
        return 1
        ;;
    esac
  done
}

explain_state() {  # prints why a resource is FAILED or SUSPENDED
  local why
  why=$(tpus queued-resources describe "$TPU_NAME" --format='value(
    state.failedData.error.message, state.stateInitiator)' 2>/dev/null) ||
    why=''
  why=$(tr -s '\t\n ' ' ' <<<"$why")
  say "$TPU_NAME is $STATE: ${why:-no reason given}"
  case $STATE in
    FAILED) say "No capacity or quota, or a wrong request: try another zone," \
      "a later time (--valid-until) or another --provisioning." ;;
    SUSPEND*) say "The service takes spot machines back when it needs them." ;;
  esac
}

# Returns 0 once the resource is ACTIVE, EXIT_NO_TPU if it will not be.
wait_until_active() {
  local started=$SECONDS before='' said=0 missing=0
  while :; do
    read_state
    if [ "$STATE" != "$before" ] || ((SECONDS - said >= 300)); then
      say "$TPU_NAME: $STATE after $((SECONDS - started)) s"
      before=$STATE said=$SECONDS
    fi
    case $STATE in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        explain_state
        return "$EXIT_NO_TPU"
        ;;
      NONE | UNREADABLE)
        if ((++missing >= 5)); then
          say "$TPU_NAME: cannot be read. $WHY"
          return "$EXIT_CLOUD"
        fi
        ;;
      *) missing=0 ;;
    esac
    pause "$TPU_POLL_SECONDS"
  done
}

check_active() {
  read_state
  [ "$STATE" = ACTIVE ] || fail "$EXIT_NO_TPU" \
    "$TPU_NAME in $TPU_ZONE is $STATE, not ACTIVE. See create.sh. $WHY"
  read_shape ||
    fail "$EXIT_CLOUD" "$TPU_NAME: cannot read its nodes and workers."
}

# --- workers ----------------------------------------------------------------

ssh_flags() {
  case $TPU_SSH in
    internal) echo --internal-ip ;;
    iap) echo --tunnel-through-iap ;;
  esac
}

# on_workers ACTION [ARGUMENT...]: worker.sh on all workers; sets REPLIES.
# Fails if some did not answer, also a minute later.
on_workers() { command_on_workers "$(quoted bash "$WORKER_SCRIPT" "$@")"; }

command_on_workers() {
  local attempt flag count
  flag=$(ssh_flags)
  for attempt in 1 2; do
    OUTPUT=$(tpus queued-resources ssh "$TPU_NAME" --worker=all --node=all \
      ${flag:+"$flag"} --command="$1" 2>&1 </dev/null) || true
    REPLIES=$(grep '^@worker ' <<<"$OUTPUT" | sort -V -u) || REPLIES=''
    count=$(grep -c . <<<"$REPLIES") || true
    ((count < WORKERS)) || return 0
    if ((attempt == 1)); then
      say "$count of $WORKERS workers answered; again in $TPU_RETRY_SECONDS s"
      pause "$TPU_RETRY_SECONDS"
      is_usable || return 1
    fi
  done
  return 1
}

is_code_missing() { grep -q "$WORKER_SCRIPT: No such file" <<<"$OUTPUT"; }

unanswered() {  # prints what came instead of answers
  say "$TPU_NAME is $STATE; not all of its $WORKERS workers answered:"
  grep -v '^@worker ' <<<"$OUTPUT" | tail -n 8 | sed 's/^/    /' || true
  if is_code_missing; then
    say "The program is not there: run setup.sh."
  elif ((WORKERS > 1)); then
    say "Several workers need the key in the agent:" \
      "ssh-add ~/.ssh/google_compute_engine"
  fi
}

field() {  # field KEY LINE: the value of key=value; progress takes the rest
  local rest
  [[ " $2" == *" $1="* ]] || return 0
  rest=${2#*" $1="}
  if [ "$1" = progress ]; then echo "$rest"; else echo "${rest%% *}"; fi
}

host_of() { cut -d ' ' -f 2 <<<"$1"; }

meaning() {  # what an exit code of the program says
  case $1 in
    0) echo "done" ;;
    1) echo "a bug (traceback in the log)" ;;
    2) echo "a mistake in command, configuration or data" ;;
    3) echo "training diverged" ;;
    42) echo "another process died" ;;
    75) echo "stopped with a checkpoint" ;;
    "$EXIT_NO_TPU") echo "no TPU" ;;
    "$EXIT_RESTARTS") echo "too many restarts" ;;
    "$EXIT_CLOUD") echo "gcloud or ssh does not answer" ;;
    "$EXIT_SETUP") echo "set-up failed" ;;
    *)
      if (($1 > 128)); then
        echo "killed by signal $(($1 - 128))"
      else
        echo "exit code $1"
      fi
      ;;
  esac
}

check_workdir() {  # --workdir must outlive the machines
  need workdir TPU_WORKDIR "such as gs://BUCKET/RUN"
  case $TPU_WORKDIR in
    gs://?*/?*) ;;
    gs://*) mistake "--workdir=$TPU_WORKDIR: name a folder of the bucket," \
      "gs://BUCKET/RUN." ;;
    /*)
      [ -n "$TPU_LOCAL" ] || mistake \
        "--workdir=$TPU_WORKDIR: is lost with the machine and not shared by
workers. Use gs://BUCKET/RUN, or --local for one worker or a mounted folder."
      ;;
    *) mistake "--workdir=$TPU_WORKDIR: must be gs://BUCKET/RUN." ;;
  esac
}

# A command line can be read by all users of a machine and stays in logs.
refuse_secrets() {
  local word names='api_?key|passw(or)?d|secret|credentials?'
  names+='|(access|auth|hf|hub)_?token'
  for word in "$@"; do
    [[ ! ${word,,} =~ (^|[._=,-])($names)= ]] ||
      mistake "${word%%=*}=...: looks secret, and a command line is not. Let" \
        "the workers' --service-account have the right instead."
  done
}

check_program() {  # --config and the overrides, before anything is bought
  local word
  need config TPU_CONFIG "such as configs/ppo.py"
  [ -f "$HERE/../${TPU_CONFIG%%:*}" ] ||
    mistake "--config=$TPU_CONFIG: no such file in $(dirname "$HERE")."
  check_workdir
  refuse_secrets "$@"
  for word in "$@"; do
    case $word in
      *$'\n'*) mistake "$(quoted "$word"): must be one line." ;;
      --config=* | --workdir=* | --distributed=*)
        mistake "$word: is set by this command, not after the --."
        ;;
      --*=*) ;;
      *) mistake "$word: must be an override like --config.seed=1." ;;
    esac
  done
  [ -n "$TPU_RUN" ] || TPU_RUN=$(basename "$TPU_WORKDIR")
  [[ $TPU_RUN =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    mistake "--run=$TPU_RUN: must be letters, digits and . _ -"
}
