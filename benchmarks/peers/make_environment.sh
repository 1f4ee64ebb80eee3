#!/usr/bin/env bash
# An environment with a peer of benchmarks/peers:
#   make_environment.sh trl FOLDER [VERSION]     PPO needs 1.12, the last with it
#   make_environment.sh tunix FOLDER [VERSION]
set -euo pipefail
version=${3:+==$3}
case ${1:-} in
  trl) packages=(torch transformers "trl$version" datasets accelerate peft) ;;
  tunix) packages=("google-tunix$version" transformers) ;;
  *) echo "usage: make_environment.sh trl|tunix FOLDER [VERSION]" >&2; exit 2 ;;
esac
python3 -m venv "$2"
"$2/bin/pip" install -q "${packages[@]}"
"$2/bin/pip" freeze |
  grep -E '^(torch|transformers|trl|datasets|accelerate|google-tunix|jax|flax)=='
