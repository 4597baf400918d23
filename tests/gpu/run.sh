#!/usr/bin/env bash
# Tests and benchmarks on a machine with a GPU and torch, which need not reach anything else.
#
#     tests/gpu/run.sh [--wheels DIR] [--out DIR] [--only tests|benchmarks] [--minutes 60] [--device cuda|cpu] [--quick]
#
# Installs the wheels that lie in DIR (by default tests/gpu/wheels; none if it is not there) beside what the machine has,
# then runs `pytest -m gpu` and the benchmarks, and writes results.json and results.md into --out (gpu-results). The exit
# code is 1 where a test or a benchmark failed. Both files are written anew after each step, and what matters the most is
# measured first; where commands may last only so long, --minutes ends it in time, and --only does one of the two parts
# and keeps the other's results. --quick takes the smallest benchmarks, and --device cpu tries all of this where there is
# no GPU.
#
# Wheels of what is missing come from a machine that reaches a registry, for the Python of the other:
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
#         --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d DIR NAMES
# Beside torch, torchaudio, transformers, PyYAML, rich, matplotlib, pytest and hypothesis, with what these need, NAMES are
#     jiwer rapidfuzz soundfile cffi pycparser
# for tests side by side pytest-xdist execnet, and to generate speech espeakng-loader==0.2.4 Babel==2.18.*
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
wheels=$root/tests/gpu/wheels
site=$root/gpu-results/site # not in --out, which is to be brought back
out=gpu-results
rest=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    -h | --help) sed -n '2,22s/^# \{0,1\}//p' "$0"; exit ;;
    *) rest+=("$1"); shift ;;
  esac
done
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if compgen -G "$wheels/*.whl" >/dev/null; then
  rm -rf "$site"
  if "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
  else
    for wheel in "$wheels"/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
  fi
fi
cd "$root"
export PYTHONPATH=$site:$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m tests.gpu.measure --out "$out" "${rest[@]}"
