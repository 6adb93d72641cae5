#!/usr/bin/env bash
# PyTorch's own optimizer tests, those of 2.6 in Debian's source package, with steprule's classes in place of torch's.
#
#   scripts/torch_suite.sh [PYTHON] [pytest arguments]
#
# PYTHON (.venv/bin/python if not given) has steprule and its dev extra; with pytest-xdist two tests run at a time.
# What passes on torch itself must pass on steprule. What that is, is found out first, once for each version of torch;
# SUBJECT=torch or SUBJECT=steprule does only the one half. Exit status 1 lists what passes on torch alone.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$here/../.venv/bin/python
if [ $# -gt 0 ] && [ -x "$(command -v "$1")" ]; then python=$(command -v "$1") && shift; fi
work=${XDG_CACHE_HOME:-$HOME/.cache}/torch-suite
mkdir -p "$work"/{lists/partial,cache/archives/partial}
cd "$work"

fetch() { # the sources, out of the package of Debian trixie
    local mirror options
    mirror=$(grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list* 2>/dev/null | head -n 1) || true
    [ -n "$mirror" ] || { echo "apt knows no mirror of Debian, from which the tests would come" >&2 && exit 2; }
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror% } trixie main" > sources.list
    options=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/nonexistent
        -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update > fetch.log 2>&1 &&
        apt-get "${options[@]}" source --download-only pytorch >> fetch.log 2>&1 ||
        { cat fetch.log >&2 && exit 2; }
    tar -xJf pytorch_*.orig.tar.xz --strip-components=1 --wildcards \
        '*/test/test_optim.py' '*/test/optim/*.py' '*/test/distributed/optim/*.py'
    touch test/optim/__init__.py
    # a process that a test starts imports the test's file alone, and must get the same classes
    sed -i '1i import subject  # noqa: F401' test/test_optim.py test/distributed/optim/*.py
}
[ -f test/test_optim.py ] || fetch

version=$("$python" -c 'import torch; print(torch.__version__)')
parallel=()
"$python" -c 'import xdist' 2>/dev/null && parallel=(-n 2)

suite() { # subject, where outcomes go, pytest arguments...
    local subject=$1 outcomes=$2
    shift 2
    echo "== the tests on $subject"
    SUBJECT=$subject OUTCOMES=$work/$outcomes PYTHONPATH="$here/torch_suite:$here/..:$work/test" OMP_NUM_THREADS=1 \
        "$python" -m pytest -q --tb=line -p no:cacheprovider -p outcomes -W default --rootdir "$work/test" \
        "${parallel[@]}" test/test_optim.py test/distributed/optim "$@" > "$subject.log" 2>&1 || true
    tail -n 1 "$subject.log"
    [ -s "$outcomes" ] || { tail -n 20 "$subject.log" >&2 && exit 2; }
}

# what can be collected depends on the packages that stand beside torch
reference=torch-$version-$(cksum <<< "$python" | cut -d " " -f 1).outcomes
if [ "${SUBJECT:-torch}" = torch ] && { [ -n "${SUBJECT:-}" ] || [ ! -f "$reference" ]; }; then
    suite torch "$reference"
fi
[ "${SUBJECT:-steprule}" = steprule ] || exit 0
suite steprule steprule.outcomes "$@"
"$python" "$here/torch_suite/compare.py" "$reference" steprule.outcomes ${1:+--some} || {
    echo "what they said stands in $work/steprule.log" && exit 1
}
