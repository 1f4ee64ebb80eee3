#!/usr/bin/env bash
# Everything that only an accelerator can tell, in one go of under 8 minutes:
#
#     bash benchmarks/device.sh [--out=FOLDER] [--tiny] [--only=PART,PART]
#
# PYTHON names the interpreter, python3 where unset. What is measured, and how:
# benchmarks/device/__main__.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.device "$@"
