#!/usr/bin/env bash
# An environment with the peers of benchmarks/peers:
#   make_environment.sh FOLDER [VERSION OF TRL]
# PPO needs TRL 1.12, the last one that has it.
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install -q torch transformers "trl${2:+==$2}" datasets accelerate
"$1/bin/pip" freeze | grep -E '^(torch|transformers|trl|datasets|accelerate)=='
