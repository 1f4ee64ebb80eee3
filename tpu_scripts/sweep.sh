#!/usr/bin/env bash
# Runs each line of a file of overrides, or each trial of an experiment's
# sweep(), spread over several slices.
#
#   sweep.sh --file=grid.txt --slices=4 --name=grid --zone=us-east5-b \
#     --type=v6e-8 --provisioning=spot --config=configs/ppo.py \
#     --workdir=gs://my-bucket/grid --out=runs/grid --delete
#
#   all flags of watch.sh; and
#   --file=...     TPU_FILE     overrides, one run a line; # comments; quotes
#                               as in a shell
#   --sweep=sweep  TPU_SWEEP    in its place: the function of the experiment
#                               that returns trials (docs/sweeps.md); needs
#                               rlhf_jax here, for TPU_PYTHON (python3)
#   --seeds=1      TPU_SEEDS    with --sweep: runs of each setting
#   --slices=1     TPU_SLICES   slices NAME-0, NAME-1, ... used side by side
#   --out=...      TPU_OUT      logs and exit codes here; runs/NAME by default
#
# Line K runs in WORKDIR/K (001, 002, ...) under watch.sh, so preemptions are
# survived. A run that fails does not end the others. The same command again
# goes on with what was stopped or not run; it skips what is done and what has
# failed (unless --retry-failed). --delete deletes each slice
# when no line is left for it. Overrides after -- apply to all lines. Tables of
# a copy of WORKDIR: python -m rlhf_jax.sweep --config=... --results.
# Exit codes: 0 all done, 1 some failed or were not run, 2 mistake.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

: "${TPU_SLICES:=1}"
: "${TPU_SEEDS:=1}"
watch_flags=()
mine=()
for argument in "$@"; do  # what is left is watch.sh's
  case $argument in
    --) break ;;
    --file=* | --sweep=* | --seeds=* | --slices=* | --out=* | --name=* | --workdir=* | --zone=* | \
      --project=* | --config=* | --delete | --retry-failed | \
      --help | -h) mine+=("$argument") ;;
    *) watch_flags+=("$argument") ;;
  esac
  shift
done
[ "${1-}" != -- ] || shift
common_overrides=("$@")
parse "${COMMON[@]}" file=TPU_FILE sweep=TPU_SWEEP seeds=TPU_SEEDS slices=TPU_SLICES out=TPU_OUT \
  workdir=TPU_WORKDIR config=TPU_CONFIG delete!TPU_DELETE run=TPU_RUN \
  retry-failed!TPU_RETRY_FAILED local!TPU_LOCAL -- "${mine[@]}"
for argument in "${watch_flags[@]}"; do
  [ "$argument" != --local ] || TPU_LOCAL=1
done
check_common
[ -z "$TPU_FILE" ] || [ -z "$TPU_SWEEP" ] ||
  mistake "--file=$TPU_FILE and --sweep=$TPU_SWEEP: give one of them."
[ -n "$TPU_SWEEP" ] ||
  need file TPU_FILE "overrides, one run a line; or --sweep=sweep"
[ -n "$TPU_SWEEP" ] || [ -f "$TPU_FILE" ] ||
  mistake "--file=$TPU_FILE: no such file."
[[ $TPU_SLICES =~ ^[1-9][0-9]*$ ]] ||
  mistake "--slices=$TPU_SLICES: must be a number >= 1."
[ -n "$TPU_OUT" ] || TPU_OUT=runs/$TPU_NAME

source_of_lines=$TPU_FILE
if [ -n "$TPU_SWEEP" ]; then
  need config TPU_CONFIG "the experiment"
  source_of_lines="$TPU_SWEEP() of $TPU_CONFIG"
  listed=$("${TPU_PYTHON:-python3}" -m rlhf_jax.sweep --config="$TPU_CONFIG" \
    --sweep="$TPU_SWEEP" --seeds="$TPU_SEEDS" --lines "${common_overrides[@]}") ||
    mistake "--sweep=$TPU_SWEEP: no trials of $TPU_CONFIG."
  common_overrides=()  # each line has them
else
  listed=$(cat "$TPU_FILE")
fi
lines=()
while IFS= read -r line || [ -n "$line" ]; do
  [[ $line =~ ^[[:space:]]*(#|$) ]] || lines+=("$line")
done <<<"$listed"
((${#lines[@]} > 0)) || mistake "$source_of_lines: holds no overrides."
words_of() { xargs -n 1 printf '%s\n' <<<"$1"; }
base=$TPU_WORKDIR
for index in "${!lines[@]}"; do  # all mistakes before anything is bought
  split=$(words_of "${lines[index]}") ||
    mistake "$source_of_lines: cannot read the quotes of: ${lines[index]}"
  mapfile -t words <<<"$split"
  check_program "${words[@]}" "${common_overrides[@]}"
done
"$HERE/watch.sh" "${watch_flags[@]}" --dry-run -- "${common_overrides[@]}" \
  >/dev/null

mkdir -p "$TPU_OUT"
TPU_OUT=$(cd "$TPU_OUT" && pwd)
for index in "${!lines[@]}"; do
  id=$(printf '%03d' "$((index + 1))")
  if [ -f "$TPU_OUT/$id.line" ] &&
    [ "$(cat "$TPU_OUT/$id.line")" != "${lines[index]}" ]; then
    mistake "$TPU_OUT/$id.line: was another line: $(cat "$TPU_OUT/$id.line").
Choose another --out and --workdir, or append new lines at the end."
  fi
  printf '%s\n' "${lines[index]}" >"$TPU_OUT/$id.line"
  rm -rf "$TPU_OUT/$id.claim"
done

name=$TPU_NAME
delete_at_end=$TPU_DELETE
export TPU_RUN TPU_NAME TPU_WORKDIR TPU_CONFIG TPU_DELETE=''

is_over() {  # is_over CODE: the line of this code is not to be run again
  case $1 in
    '' | 75 | 130 | 143) return 1 ;;  # not run, or stopped by somebody
    "$EXIT_NO_TPU" | "$EXIT_RESTARTS" | "$EXIT_CLOUD" | "$EXIT_SETUP")
      return 1
      ;;
    0) return 0 ;;
    *) [ -z "$TPU_RETRY_FAILED" ] ;;
  esac
}

claim_line() {  # sets index and id of a line that nobody runs
  for index in "${!lines[@]}"; do
    id=$(printf '%03d' "$((index + 1))")
    ! is_over "$(cat "$TPU_OUT/$id.code" 2>/dev/null)" || continue
    ! mkdir "$TPU_OUT/$id.claim" 2>/dev/null || return 0
  done
  return 1
}

one_slice() {  # one_slice INDEX: runs lines until none is left
  local index id code words started split
  TPU_NAME=$name-$1
  while claim_line; do
    split=$(words_of "${lines[index]}")
    mapfile -t words <<<"$split"
    TPU_WORKDIR=${base%/}/$id TPU_RUN=$name-$id
    say "$id on $TPU_NAME: ${lines[index]}"
    started=$SECONDS code=0
    echo "$TPU_NAME" >"$TPU_OUT/$id.slice"
    "$HERE/watch.sh" "${watch_flags[@]}" -- "${words[@]}" \
      "${common_overrides[@]}" >>"$TPU_OUT/$id.log" 2>&1 </dev/null &
    child=$!
    wait "$child" || code=$?
    child=''
    echo "$code" >"$TPU_OUT/$id.code"
    echo "$(((SECONDS - started) / 60))" >"$TPU_OUT/$id.minutes"
    say "$id on $TPU_NAME: $(meaning "$code")"
    case $code in
      "$EXIT_NO_TPU" | "$EXIT_RESTARTS" | "$EXIT_CLOUD" | "$EXIT_SETUP")
        say "$TPU_NAME takes no further lines; see $TPU_OUT/$id.log"
        rmdir "$TPU_OUT/$id.claim"
        break
        ;;
    esac
  done
  if [ -n "$delete_at_end" ]; then
    "$HERE/delete.sh" --yes || say "DELETE $TPU_NAME YOURSELF: it costs money."
  fi
}

slice_worker() {
  child=''
  trap 'stop_slice' TERM HUP
  one_slice "$1"
}

# shellcheck disable=SC2317  # called by trap
stop_slice() {
  trap '' TERM HUP
  if [ -n "$child" ]; then
    kill "$child" 2>/dev/null || true
    wait "$child" || true
  fi
  exit 143
}

# shellcheck disable=SC2317  # called by trap
stop_all() {
  trap '' INT TERM HUP
  say "stopping; runs that were started go on and cost money: list.sh," \
    "delete.sh"
  kill "${workers[@]}" 2>/dev/null || true
  wait
  exit 130
}

workers=()
say "${#lines[@]} lines of $source_of_lines on $TPU_SLICES slices; logs in $TPU_OUT"
trap stop_all INT TERM HUP
for ((slice = 0; slice < TPU_SLICES; slice++)); do
  slice_worker "$slice" &
  workers+=("$!")
done
wait

not_done=0
printf '%-5s %-5s %-8s %-20s %-28s %s\n' LINE CODE MINUTES SLICE RESULT \
  OVERRIDES
for index in "${!lines[@]}"; do
  id=$(printf '%03d' "$((index + 1))")
  code=$(cat "$TPU_OUT/$id.code" 2>/dev/null || echo -)
  result="not run"
  [ "$code" = - ] || result=$(meaning "$code")
  [ "$code" = 0 ] || not_done=1
  printf '%-5s %-5s %-8s %-20s %-28s %s\n' "$id" "$code" \
    "$(cat "$TPU_OUT/$id.minutes" 2>/dev/null || echo -)" \
    "$(cat "$TPU_OUT/$id.slice" 2>/dev/null || echo -)" "$result" \
    "${lines[index]}"
done
exit "$not_done"
