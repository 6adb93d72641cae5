#!/usr/bin/env bash
# The first hour on a GPU, in under eight minutes and without network. What is likeliest to be wrong comes first. Each
# part has a limit of time, none keeps the next from running, and what was measured becomes one table with the card's
# name, FOLDER/table.md, whatever has failed.
#
#   scripts/gpu.sh [FOLDER [PART...]]     results go to FOLDER, gpu-results if not given; PYTHON names another interpreter
#
# The parts are those of the lines below, in this order; host, benchmark and compile run only where they are named.
# steprule need not be installed, but what it depends on must be, with pytest, hypothesis and a C compiler.
set -uo pipefail
cd "$(dirname "$0")/.."

results=${1:-gpu-results}
[ $# -gt 0 ] && shift
parts=${*:-sync tests memory blocks zeros rows bucket scaler graph first muon}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
mkdir -p "$results"
rm -f "$results"/{check,summary}.txt "$results"/table.md
for part in $parts; do rm -f "$results/$part".{txt,json}; done
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset TRITON_INTERPRET

limited() { # part, seconds, command...
    local part=$1 seconds=$2 begin=$SECONDS status
    shift 2
    [[ " $parts " == *" $part "* ]] || return 0
    echo "== $part"
    timeout --signal=INT --kill-after=5 "$seconds" "$@" 2>&1 | tee "$results/$part.txt"
    status=${PIPESTATUS[0]}
    echo "$part: exit status $status after $((SECONDS - begin)) s" >>"$results/summary.txt"
}

measured() { # part, seconds, cases: they become FOLDER/part.json, and none begins when little time is left
    local part=$1 seconds=$2 cases=$3
    limited "$part" "$seconds" "$python" benchmarks/step_time.py --device cuda --repeats 5 \
        --seconds $((seconds * 4 / 5)) --case "$cases" --json "$results/$part.json"
}

report() {
    "$python" scripts/gpu_page.py "$results"
    cat "$results/summary.txt"
}

timeout --kill-after=5 20 "$python" scripts/gpu_check.py 2>&1 | tee "$results/check.txt"
status=${PIPESTATUS[0]}
if [ "$status" -ne 0 ]; then
    echo "check: exit status $status, so that nothing else was run" >>"$results/summary.txt"
    report
    exit 2
fi

parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 12)
waiting='wait or graph or captur or replay or stream'
limited sync 90 "$python" -m pytest -q -W default "${parallel[@]}" tests/gpu -k "$waiting"
limited tests 100 "$python" -m pytest -q -W default "${parallel[@]}" tests/gpu tests/kernels/gpu/test_triton.py \
    -m 'not slow' -k "not ($waiting)"
if command -v compute-sanitizer >/dev/null; then
    limited memory 40 compute-sanitizer --tool memcheck --target-processes all --error-exitcode 3 \
        "$python" -m pytest -q -W default tests/gpu/test_memory.py
elif [[ " $parts " == *" memory "* ]]; then
    echo "memory: not run, since compute-sanitizer is not there" >>"$results/summary.txt"
fi
measured blocks 45 'adamw*-block-*'
measured zeros 45 'adamw*-zeros-*'
measured rows 30 'adafactor/[rw]*'
measured bucket 20 'adamw*-bucket/*'
measured scaler 15 'adamw-scaler/*'
measured graph 15 'adamw-graph/*'
measured first 40 '*/first'
measured muon 20 'muon-bf16/*'

limited host 40 "$python" benchmarks/gpu_host.py
measured benchmark 300 '*'
limited compile 70 "$python" benchmarks/step_time.py --device cuda --repeats 5 --case 'adamw/gpt2' --compile \
    --json "$results/compile.json"

report
! grep -qv -e 'exit status 0 ' -e 'not run' "$results/summary.txt"
