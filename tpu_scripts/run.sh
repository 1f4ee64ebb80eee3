#!/usr/bin/env bash
# Starts the program on all workers of a slice that setup.sh has prepared.
#
#   run.sh --name=my-tpu --zone=us-east5-b --config=configs/ppo.py \
#     --workdir=gs://my-bucket/ppo -- --config.prompts.source=/home/me/p.jsonl
#   run.sh --name=my-tpu --zone=us-east5-b --workdir=gs://my-bucket/ppo --stop
#
#   --name=... --zone=...  TPU_NAME, TPU_ZONE
#   --project=... --ssh=.. TPU_PROJECT, TPU_SSH
#   --config=...           TPU_CONFIG    file of the repository, file.py:arg
#   --workdir=...          TPU_WORKDIR   gs://BUCKET/RUN, kept when machines go
#   --run=...              TPU_RUN       name of the logs; last part of workdir
#   --direct               TPU_DIRECT=1  hand gs:// to the program as it is;
#                          else workers mount the bucket at ~/gcs/BUCKET
#   --local                TPU_LOCAL=1   allow a folder that is not gs://
#   --stop                 TPU_STOP=1    save a checkpoint and exit with 75
#   -- --config.field=...  overrides
#
# It goes on when ssh ends. Each worker keeps ~/rlhf_jax_runs/RUN/log and the
# exit code. The same command again resumes; while it runs, it is refused. The
# command line is logged: put nothing secret in it.
# Exit codes: 0 started, 2 mistake or running, 10 no TPU, 12 no answer.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse "${COMMON[@]}" config=TPU_CONFIG workdir=TPU_WORKDIR run=TPU_RUN \
  direct!TPU_DIRECT local!TPU_LOCAL stop!TPU_STOP -- "$@"
check_common

stop_unanswered() {
  unanswered
  [ "$STATE" = ACTIVE ] || exit "$EXIT_NO_TPU"
  exit "$EXIT_CLOUD"
}

if [ -n "$TPU_STOP" ]; then
  [ -n "$TPU_RUN" ] || TPU_RUN=$(basename "$TPU_WORKDIR")
  need run TPU_RUN "which run to stop"
  check_active
  say "ask $TPU_RUN on $WORKERS workers to save a checkpoint and stop"
  on_workers stop "$TPU_RUN" || stop_unanswered
  printf '%s\n' "${REPLIES//@worker/   }"
  exit 0
fi

check_program "${REST[@]}"
check_active
arguments=(--config="$TPU_CONFIG" "${REST[@]}")
launch=$(date -u +%Y%m%dT%H%M%SZ)-$$

on_workers status || stop_unanswered
while read -r reply; do
  [ "$(field state "$reply")" != running ] || mistake \
    "$TPU_NAME: $(field run "$reply") runs on $(host_of "$reply"). See status.sh
and logs.sh; run.sh --run=$(field run "$reply") --stop ends it."
done <<<"$REPLIES"

say "start $TPU_RUN on $WORKERS workers of $TPU_NAME:"
say "  python -m rlhf_jax.main $(quoted "${arguments[@]}" \
  --workdir="$TPU_WORKDIR")"
if [ -z "$TPU_DIRECT" ] && [[ $TPU_WORKDIR = gs://* ]]; then
  say "  with ${TPU_WORKDIR/#gs:\/\//\~/gcs/} for the --workdir on each worker"
fi
on_workers start "$TPU_RUN" "$launch" "$TPU_WORKDIR" "${TPU_DIRECT:-0}" \
  "${arguments[@]}" || stop_unanswered
bad=0
while read -r reply; do
  [ "$(field start "$reply")" != started ] || continue
  say "$(host_of "$reply"): not started: ${reply#@worker * }"
  bad=1
done <<<"$REPLIES"
if ((bad)); then
  grep -v '^@worker ' <<<"$OUTPUT" | tail -n 8 | sed 's/^/    /' || true
  on_workers end 10 "$launch" || true
  fail "$EXIT_SETUP" "$TPU_RUN did not start everywhere; stopped again."
fi
say "started. status.sh, logs.sh; watch.sh restarts it after a preemption"
