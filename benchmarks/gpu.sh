#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under 8 minutes, on a machine that has PyTorch and no network:
#
#   bash benchmarks/gpu.sh collect wheels              where the project is installed: the other wheels, for the same
#                                                      Python and platform
#   bash benchmarks/gpu.sh run wheels results.json     on the GPU machine: the GPU tests, then the benchmarks
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
collect)
  "${PYTHON:-.venv/bin/python}" -m benchmarks.wheels "${2:?where to put the wheels}"
  ;;
run)
  wheels=${2:?the folder of wheels} results=${3:?the file for the results}
  python=${PYTHON:-python3}
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  site="$folder/site-packages" # under this name packages count as installed, and are not pickled by value
  "$python" -m pip install -q --no-index --no-deps --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site:$PWD/src:$PWD" HF_HUB_OFFLINE=1
  # The benchmarks run whatever the tests say; their verdict is the script's.
  verdict=0
  timeout 120 "$python" -m pytest --noconftest -p no:cacheprovider tests/gpu || verdict=$?
  "$python" -m benchmarks run token_kl precision memory teacher_pass update step growth \
    ${BENCHMARK_OPTIONS:---device cuda --repetitions 3} --budget "${BUDGET:-240}" --out "$results" || verdict=$?
  exit "$verdict"
  ;;
*)
  sed -n '2,6p' "$0" >&2
  exit 2
  ;;
esac
