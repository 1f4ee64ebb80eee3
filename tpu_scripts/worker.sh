#!/usr/bin/env bash
# The part that runs on each worker; the other commands call it over ssh.
#
#   worker.sh install COMMIT NO_GCSFUSE     environment for the unpacked code
#   worker.sh chips                         start JAX, count processes, devices
#   worker.sh start RUN LAUNCH WORKDIR DIRECT PROGRAM_ARGUMENT...
#   worker.sh status                        of the run started last
#   worker.sh stop RUN                      ask for a checkpoint, exit code 75
#   worker.sh end SECONDS [LAUNCH]          stop; kill what is left after that
#   worker.sh log RUN LINES [follow]
#   worker.sh last RUN LINES HOST           log, on that host only
#
# All but the logs answer in one line, "@worker HOST key=value ...". A run has
# log, exit_code, launch, command in ~/rlhf_jax_runs/RUN. Its processes hold
# a lock on ~/rlhf_jax_runs/lock, which the kernel drops when they are gone.
set -euo pipefail
cd "$HOME"
HOST=$(hostname)
RUNS=$HOME/rlhf_jax_runs
CODE=$HOME/rlhf_jax
ENVIRONMENT=$HOME/rlhf_jax_env
: "${RLHF_JAX_INSTALL_TRIES:=3}" "${RLHF_JAX_CHIPS_SECONDS:=300}"
PORT=8482  # where the processes of a run meet; JAX's own choice on TPU VMs
mkdir -p "$RUNS"

reply() { printf '@worker %s %s\n' "$HOST" "$*"; }

is_busy() { ! flock -n "$RUNS/lock" true; }

current() { cat "$RUNS/current" 2>/dev/null || true; }

# --- install ----------------------------------------------------------------

find_uv() {
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null ||
    curl -LsSf https://astral.sh/uv/install.sh | sh
}

find_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc release
  command -v gcsfuse >/dev/null && return
  release=gcsfuse-$(lsb_release -c -s)
  curl -sSf https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt $release" \
    main | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
  sudo apt-get -o DPkg::Lock::Timeout=300 install -y -qq gcsfuse
}

packages() {
  cd "$CODE"
  [ -x "$ENVIRONMENT/bin/python" ] || uv venv --python 3.12 "$ENVIRONMENT"
  uv pip install --python "$ENVIRONMENT/bin/python" -e '.[tpu]'
}

step() {  # step NAME COMMAND...: tried several times, output in setup.log
  local name=$1 try code
  shift
  for ((try = 1; try <= RLHF_JAX_INSTALL_TRIES; try++)); do
    set +e  # not in a condition, where bash would ignore a failing line
    (
      set -e
      "$@"
    ) >>setup.log 2>&1 </dev/null
    code=$?
    set -e
    ((code != 0)) || return 0
    sleep "$((try == RLHF_JAX_INSTALL_TRIES ? 0 : 5 * try))"
  done
  printf '%s, setup.log: %s\n' "$HOST" "$(tail -n 5 setup.log)"
  reply install=failed step="$name"
  exit 1
}

install() {
  if is_busy; then
    reply install=refused running="$(current)"
    exit 1
  fi
  if [ -d rlhf_jax.new ]; then
    rm -rf "$CODE"
    mv rlhf_jax.new "$CODE"
  fi
  : >setup.log
  step uv find_uv
  export PATH="$HOME/.local/bin:$PATH"
  step packages packages
  [ "$2" = 1 ] || step gcsfuse find_gcsfuse
  echo "$1" >rlhf_jax_commit
  reply install=done commit="$1"
}

# --- the processes of a run ---------------------------------------------------

metadata() {
  local server=${GCE_METADATA_IP:-metadata.google.internal}
  curl -sf -H 'Metadata-Flavor: Google' \
    "http://$server/computeMetadata/v1/instance/attributes/$1"
}

# Prints --distributed=HOST:PORT,PROCESSES,INDEX, or nothing on one worker.
# A worker's entry is its address or NAME:ID:ADDRESS; the coordinator of
# several slices is in tpu-env.
distributed_flag() {
  local listed index slices slice address count
  listed=$(metadata worker-network-endpoints) || return
  index=$(metadata agent-worker-number) || return
  slices=$(from_tpu_env MEGASCALE_NUM_SLICES)
  slice=$(from_tpu_env MEGASCALE_SLICE_ID)
  address=$(from_tpu_env MEGASCALE_COORDINATOR_ADDRESS)
  count=$(tr ',' '\n' <<<"$listed" | grep -c .) || return
  : "${slices:=1}" "${slice:=0}"
  if [ -z "$address" ]; then
    address=${listed%%,*}
    address=${address##*:}
  fi
  ((slices * count > 1)) || return 0
  printf -- '--distributed=%s:%s,%s,%s\n' "${address%%:*}" "$PORT" \
    "$((slices * count))" "$((slice * count + index))"
}

from_tpu_env() {  # lines such as KEY: 'value'
  { metadata tpu-env || true; } |
    sed -n "s/^ *$1: *'\{0,1\}\([^']*\)'\{0,1\} *$/\1/p"
}

chips() {
  local flag output
  local program='
import sys
import jax
from rlhf_jax import distributed
flag = sys.argv[1].partition("=")[2]
distributed.initialise(flag if flag else "off")
print(f"chips=ok processes={jax.process_count()}"
      f" local={jax.local_device_count()} devices={jax.device_count()}"
      f" kind={jax.devices()[0].device_kind.replace(chr(32), chr(95))}")
'
  if is_busy; then
    reply chips=refused running="$(current)"
    exit 1
  fi
  cd "$CODE"
  flag=$(distributed_flag)
  if output=$(timeout "$RLHF_JAX_CHIPS_SECONDS" "$ENVIRONMENT/bin/python" \
    -c "$program" "$flag" 2>&1 </dev/null) &&
    grep -q '^chips=ok' <<<"$output"; then
    reply "$(grep '^chips=ok' <<<"$output")"
  else
    printf '%s: %s\n' "$HOST" "$(tail -n 10 <<<"$output")"
    reply chips=failed
    exit 1
  fi
}

# Several machines write below it: one must see at once what another wrote, so
# nothing is cached; Orbax renames a finished checkpoint's folder.
mount_bucket() {
  mountpoint -q "$HOME/gcs/$1" && return
  mkdir -p "$HOME/gcs/$1"
  gcsfuse --implicit-dirs --rename-dir-limit=100000 \
    --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$1" "$HOME/gcs/$1"
}

start() {
  local run=$1 launch=$2 workdir=$3 direct=$4 folder path flag problem=''
  shift 4
  folder=$RUNS/$run
  if [ ! -x "$ENVIRONMENT/bin/python" ]; then
    reply start=failed reason=run-setup.sh-first
    exit 1
  fi
  exec 9>"$RUNS/lock"
  if ! flock -w 1 9; then
    if [ "$(cat "$RUNS/$(current)/launch")" = "$launch" ]; then
      reply start=started  # by an ssh whose answer was lost
    else
      reply start=refused running="$(current)"
    fi
    return
  fi
  mkdir -p "$folder"
  rm -f "$folder"/{exit_code,stop,pid}
  echo "$launch" >"$folder/launch"
  echo "$run" >"$RUNS/current"
  if [[ $workdir = gs://* && $direct != 1 ]]; then
    path=${workdir#gs://}
    mount_bucket "${path%%/*}" >>"$folder/log" 2>&1 9>&- </dev/null ||
      problem=mount-of-${path%%/*}
    workdir=$HOME/gcs/$path
  fi
  flag=$(distributed_flag) || problem=metadata
  if [ -n "$problem" ]; then
    tail -n 3 "$folder/log" 2>/dev/null || true
    reply start=failed reason="$problem"
    exit 1
  fi
  set -- "$ENVIRONMENT/bin/python" -m rlhf_jax.main "$@" \
    --workdir="$workdir" ${flag:+"$flag"}
  {
    echo "== launch $launch, commit $(cat rlhf_jax_commit)"
    printf '%q ' "$@"
    echo
  } | tee "$folder/command" >>"$folder/log"
  setsid nohup bash "${BASH_SOURCE[0]}" supervise "$folder" "$@" \
    >>"$folder/log" 2>&1 </dev/null &
  reply start=started
}

supervise() {  # runs the program; its exit code outlives it
  local folder=$1 code='' result process woken
  shift
  cd "$CODE"
  trap woken=1 TERM HUP INT  # ends the wait, not the program
  echo "$$" >"$folder/group"
  "$@" &
  process=$!
  echo "$process" >"$folder/pid"
  while :; do
    woken='' result=0
    wait "$process" || result=$?
    if [ -z "$code" ] || ((result != 127)); then
      code=$result  # 127: the wait before had its code already
    fi
    if [ -z "$woken" ] || ((result <= 128)); then
      break
    fi
  done
  echo "$code" >"$folder/exit_code.tmp"
  mv "$folder/exit_code.tmp" "$folder/exit_code"
  trap '' TERM
  kill -TERM -- "-$$"  # children that the program left behind
}

status() {
  local run folder state=idle code='' stopping=0
  run=$(current)
  folder=$RUNS/$run
  if [ -n "$run" ]; then
    code=$(cat "$folder/exit_code" 2>/dev/null) || true
    if [ -n "$code" ]; then
      state=exited
    elif is_busy; then
      state=running
    else
      state=lost
    fi
  fi
  [ ! -e "$folder/stop" ] || stopping=1
  reply state="$state" run="${run:--}" code="${code:--}" stopping="$stopping" \
    commit="$(cat rlhf_jax_commit 2>/dev/null || echo -)" \
    progress="$(progress "$folder/log")"
}

progress() {  # the newest line like "ppo 12/24  50%", else the newest line
  local lines
  lines=$(tail -c 8192 "$1" 2>/dev/null | tr '\r' '\n' |
    sed 's/\x1b\[K//g' | grep -v '^[[:space:]]*$') || return 0
  { grep -E '[0-9]+/[0-9]+ +[0-9]+%' <<<"$lines" || echo "$lines"; } |
    tail -n 1 | cut -c 1-120
}

signal_run() {  # signal_run SIGNAL FILE: to the process or group noted there
  local process
  process=$(cat "$RUNS/$(current)/$2" 2>/dev/null) || return 0
  [ "$2" = pid ] || process=-$process
  kill "-$1" -- "$process" 2>/dev/null || true
}

stop() {
  if is_busy && [ "$(current)" = "$1" ]; then
    : >"$RUNS/$1/stop"
    signal_run TERM pid
    reply stop=sent
  else
    reply stop=not-running
  fi
}

end() {
  local deadline=$((SECONDS + $1)) launch
  launch=$(cat "$RUNS/$(current)/launch" 2>/dev/null) || true
  if [ -n "${2-}" ] && [ "$2" != "$launch" ]; then
    reply end=not-mine
    return
  fi
  is_busy && signal_run TERM pid
  while is_busy && ((SECONDS < deadline)); do sleep 0.5; done
  if is_busy; then
    signal_run KILL group
    sleep 1
  fi
  if is_busy; then reply end=failed; else reply end=done; fi
}

log() {
  local file=$RUNS/$1/log
  [ -f "$file" ] || {
    echo "$HOST: no run $1; there is: $(cd "$RUNS" && echo ./*/)"
    exit 1
  }
  if [ "${3-}" = follow ]; then
    exec tail -n "$2" -F "$file"
  fi
  tail -n "$2" "$file"
}

last() { [ "$3" != "$HOST" ] || log "$1" "$2"; }

case ${1-} in
  install | chips | start | supervise | status | stop | end | log | last)
    "$@"
    ;;
  *)
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    case ${1-} in --help | -h) ;; *) exit 2 ;; esac
    ;;
esac
