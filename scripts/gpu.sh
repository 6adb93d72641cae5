#!/usr/bin/env bash
# The first hour on a GPU, in some eight minutes and without network: every test that needs one, a check of memory, where
# the host's time goes, and the benchmark, whose table is ready for docs/.
#
#   scripts/gpu.sh [FOLDER [PART...]]     results go to FOLDER, gpu-results if not given; PYTHON names another interpreter
#
# The parts are tests, memory, host, benchmark, compile; each has a limit of time, and none keeps the next from running.
# steprule need not be installed, but what it depends on must be, with pytest, hypothesis and a C compiler.
set -uo pipefail
cd "$(dirname "$0")/.."

results=${1:-gpu-results}
[ $# -gt 0 ] && shift
parts=${*:-tests memory host benchmark compile}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
summary=()

limited() { # part, seconds, command...
    local part=$1 seconds=$2 begin=$SECONDS
    shift 2
    [[ " $parts " == *" $part "* ]] || return 0
    echo "== $part"
    timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>&1 | tee "$results/$part.txt"
    summary+=("$part: exit status ${PIPESTATUS[0]} after $((SECONDS - begin)) s")
}

"$python" scripts/gpu_check.py || exit 2

parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 8)
limited tests 150 "$python" -m pytest -q -W default "${parallel[@]}" tests/gpu tests/kernels/gpu/test_triton.py
if command -v compute-sanitizer >/dev/null; then
    limited memory 90 compute-sanitizer --tool memcheck --target-processes all --error-exitcode 3 \
        "$python" -m pytest -q -W default tests/gpu -k 'bucket or every_extent or reference'
fi
limited host 40 "$python" benchmarks/gpu_host.py
limited benchmark 200 "$python" benchmarks/step_time.py --device cuda --repeats 5 --seconds 180 \
    --json "$results/step_time.json" --markdown "$results/step_time.md"
limited compile 70 "$python" benchmarks/step_time.py --device cuda --repeats 5 --case 'adamw/gpt2' --compile \
    --json "$results/compile.json"

printf '%s\n' "${summary[@]}" | tee "$results/summary.txt"
! grep -qv 'exit status 0 ' "$results/summary.txt"
