#!/usr/bin/env bats
# sweep.sh: every line once, over several slices that come and go.
# shellcheck disable=SC2016  # programs are expanded on the worker

load common

grid() {  # the lines of the sweep
  export TPU_NAME=grid TPU_WORKDIR=gs://bucket/g
  export TPU_FILE=$FAKE/grid TPU_OUT=$FAKE/out
  printf '%s\n' "$@" >"$TPU_FILE"
}

all_starts() { cat "$FAKE"/programs.* | wc -l; }

@test "every line runs once, in its own folder, and the slices are deleted" {
  grid '--config.seed=1' '# not this one' '' \
    '--config.seed=2 --config.title="two  words"' '--config.seed=3'
  run "$SCRIPTS/sweep.sh" --slices=2 --delete -- --config.rate=0.1
  expect 0 "3 lines of" "on 2 slices" "001   0 " "002   0 " "003   0 "
  [ "$(all_starts)" = 3 ]
  cat "$FAKE"/programs.* >"$FAKE/all"
  grep -q "seed=1|--config.rate=0.1|.*gcs/bucket/g/001" "$FAKE/all"
  grep -q "seed=2|--config.title=two  words|.*gcs/bucket/g/002" "$FAKE/all"
  grep -q "seed=3|.*gcs/bucket/g/003" "$FAKE/all"
  [ "$(calls "queued-resources create grid-0")" = 1 ]
  [ "$(calls "queued-resources create grid-1")" -le 1 ]
  [ -z "$(ls "$FAKE/slices")" ]
}

@test "a failure ends neither the others nor is it tried again unasked" {
  grid '--config.seed=1' '--config.seed=2' '--config.seed=3'
  program <<'END'
[[ "$*" != *seed=2* ]] || [ -e "$FAKE/mended" ] || exit 3
exit 0
END
  run "$SCRIPTS/sweep.sh"
  expect 1 "002   3 " "training diverged" "003   0 "
  [ "$(all_starts)" = 3 ]
  run "$SCRIPTS/sweep.sh"
  expect 1 "002   3 "
  [ "$(all_starts)" = 3 ]
  touch "$FAKE/mended"
  run "$SCRIPTS/sweep.sh" --retry-failed
  expect 0 "002   0 "
  [ "$(all_starts)" = 4 ]
}

@test "a preemption is survived" {
  grid '--config.seed=1' '--config.seed=2'
  program <<'END'
if ((ATTEMPT == 1)); then
  echo SUSPENDED >"$FAKE/slices/$SLICE/states"
  sleep 60 & wait
fi
exit 0
END
  run "$SCRIPTS/sweep.sh"
  expect 0 "001   0 " "002   0 "
  grep -q "restart 1 of 3" "$FAKE/out/001.log"
  [ "$(all_starts)" = 3 ]
}

@test "a slice that cannot be had leaves its lines to the others" {
  grid '--config.seed=1' '--config.seed=2' '--config.seed=3'
  echo "PERMISSION_DENIED: no" >"$FAKE/create_error.grid-0"
  run "$SCRIPTS/sweep.sh" --slices=2
  expect 0 "grid-0 takes no further lines" "001   0     0        grid-1" \
    "002   0 " "003   0 "
  [ "$(calls "queued-resources create grid-0")" = 1 ]
}

@test "no slice at all: not run, and the next sweep runs them" {
  grid '--config.seed=1'
  echo "PERMISSION_DENIED: no" >"$FAKE/create_error"
  run "$SCRIPTS/sweep.sh"
  expect 1 "001   10 " "no TPU"
  rm "$FAKE/create_error"
  run "$SCRIPTS/sweep.sh"
  expect 0 "001   0 "
}

@test "ending the sweep leaves what runs, and the next sweep goes on" {
  grid '--config.seed=1' '--config.seed=2'
  program <<<'until [ -e "$FAKE/go" ]; do sleep 0.1; done; exit 0'
  "$SCRIPTS/sweep.sh" >"$FAKE/sweep_log" 3>&- &
  sweeping=$!
  eventually [ -e "$FAKE/programs.grid-0.0-0" ]
  eventually grep -q "1 of 1 running" "$FAKE/out/001.log"
  kill -TERM "$sweeping"
  code=0
  wait "$sweeping" || code=$?
  [ "$code" = 130 ]
  grep -q "cost money" "$FAKE/sweep_log"
  [ ! -e "$FAKE/out/001.code" ]
  touch "$FAKE/go"
  run "$SCRIPTS/sweep.sh"
  expect 0 "001   0 " "002   0 "
  [ "$(calls "queued-resources create")" = 1 ]
}

@test "mistakes in any line or flag are found before anything is created" {
  grid '--config.seed=1' 'config.seed=2'
  run "$SCRIPTS/sweep.sh"
  expect 2 "config.seed=2: must be an override"
  grid '--config.title="open'
  run "$SCRIPTS/sweep.sh"
  expect 2 "cannot read the quotes"
  grid '# nothing'
  run "$SCRIPTS/sweep.sh"
  expect 2 "holds no overrides"
  grid '--config.seed=1'
  run "$SCRIPTS/sweep.sh" --slices=0
  expect 2 "--slices=0: must be"
  run "$SCRIPTS/sweep.sh" --type=v5e-8
  expect 2 "v5litepod-8"
  run "$SCRIPTS/sweep.sh" --file="$FAKE/none"
  expect 2 "no such file"
  [ ! -e "$FAKE/calls" ]
}

@test "a line that has run cannot become another" {
  grid '--config.seed=1'
  run "$SCRIPTS/sweep.sh"
  expect 0
  grid '--config.seed=2'
  run "$SCRIPTS/sweep.sh"
  expect 2 "was another line: --config.seed=1"
}

@test "the trials of sweep() are lines, with what applies to all" {
  export TPU_NAME=grid TPU_WORKDIR=gs://bucket/g TPU_OUT=$FAKE/out
  export TPU_PYTHON=$FAKE/lister
  cat >"$TPU_PYTHON" <<'END'
#!/bin/bash
printf '%s|' "$@" >"$FAKE/asked"
echo "--config.rate=0.1 '--config.title=a b' --config.seed=1"
echo "--config.rate=0.1 '--config.title=a b' --config.seed=2"
END
  chmod +x "$TPU_PYTHON"
  run "$SCRIPTS/sweep.sh" --sweep=mine --seeds=2 -- --config.rate=0.1
  expect 0 "2 lines of mine() of configs/x.py" "001   0 " "002   0 "
  wanted="-m|rlhf_jax.sweep|--config=configs/x.py|--sweep=mine|--seeds=2|"
  [ "$(cat "$FAKE/asked")" = "$wanted--lines|--config.rate=0.1|" ]
  cat "$FAKE"/programs.* >"$FAKE/all"
  grep -q "rate=0.1|--config.title=a b|--config.seed=1|--work" "$FAKE/all"
  run "$SCRIPTS/sweep.sh" --sweep=mine --file=grid.txt
  expect 2 "give one of them"
  printf '#!/bin/bash\nexit 2\n' >"$TPU_PYTHON"
  run "$SCRIPTS/sweep.sh" --sweep=mine
  expect 2 "no trials of configs/x.py"
}
