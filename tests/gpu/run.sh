#!/usr/bin/env bash
# Tests and benchmarks on a machine with a GPU and torch, which need not reach anything else.
#
#     tests/gpu/run.sh [--wheels DIR] [--out DIR] [--device cuda|cpu] [--quick]
#
# Installs the wheels that lie in DIR (by default tests/gpu/wheels; none if it is not there) beside what the machine has,
# then runs `pytest -m gpu` and the benchmarks, and writes results.json and results.md into --out (gpu-results). The exit
# code is 1 where a test or a benchmark failed. --quick takes the smallest benchmarks, and --device cpu with it tries all
# of this where there is no GPU.
#
# Wheels of what is missing come from a machine that reaches a registry, for the Python of the other:
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d DIR NAMES
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
wheels=$root/tests/gpu/wheels
out=gpu-results
rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    -h | --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit ;;
    *) rest+=("$1"); shift ;;
  esac
done
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$out/site" "$wheels"/*.whl
fi
cd "$root"
export PYTHONPATH=$out/site:$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m tests.gpu.measure --out "$out" "${rest[@]}"
