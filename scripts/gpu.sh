#!/usr/bin/env bash
# Every test that needs a GPU, and the benchmark on it: under eight minutes, without network.
#
#   scripts/gpu.sh [FOLDER]     results go to FOLDER, gpu-results if not given; PYTHON names another interpreter
set -uo pipefail
cd "$(dirname "$0")/.."

results=${1:-gpu-results}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET
status=0

limited() { # seconds, name, command...
    local seconds=$1 name=$2
    shift 2
    echo "== $name"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$results/$name.txt" || status=1
}

"$python" -c 'import torch; assert torch.cuda.is_available(), "there is no GPU that torch can use here"' || exit 2

limited 150 tests "$python" -m pytest -q -W default tests/gpu tests/test_triton.py
limited 240 benchmark "$python" benchmarks/step_time.py --device cuda --repeats 7 \
    --json "$results/step_time.json" --markdown "$results/step_time.md"
limited 80 compile "$python" benchmarks/step_time.py --device cuda --repeats 5 --case 'adamw/gpt2' --compile \
    --json "$results/compile.json"
exit $status
