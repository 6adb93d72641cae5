#!/usr/bin/env bash
# Every test that needs a GPU, and the benchmark on it: under eight minutes, without network.
#
#   scripts/gpu.sh [FOLDER]     results go to FOLDER, gpu-results if not given; PYTHON names another interpreter
#
# steprule need not be installed, but what it depends on must be, with pytest, hypothesis and a C compiler.
set -uo pipefail
cd "$(dirname "$0")/.."

results=${1:-gpu-results}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
status=0

limited() { # seconds, name, command...
    local seconds=$1 name=$2
    shift 2
    echo "== $name"
    timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>&1 | tee "$results/$name.txt" || status=1
}

"$python" scripts/gpu_check.py || exit 2

parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 4)
limited 150 tests "$python" -m pytest -q -W default "${parallel[@]}" tests/gpu tests/kernels/gpu/test_triton.py
limited 220 benchmark "$python" benchmarks/step_time.py --device cuda --repeats 7 --seconds 190 \
    --json "$results/step_time.json" --markdown "$results/step_time.md"
limited 70 compile "$python" benchmarks/step_time.py --device cuda --repeats 5 --case 'adamw/gpt2' --compile \
    --json "$results/compile.json"
exit $status
