"""Writes the section on parity of docs/algorithms.md: how far off the reference of each algorithm we end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "algorithms.md"
sys.path.insert(0, str(ROOT / "tests" / "parity"))

from matrix_references import MATRIX  # noqa: E402
from parity_case import Case  # noqa: E402
from references import CASES  # noqa: E402

HEADING = "## Parity"

HEAD = f"""{HEADING}

What torch.optim has is held against torch.optim (`tests/algorithms/test_parity.py`), with every option. The others are
held against the package named here, or against a slow loop in numpy written from the paper: 20 steps in float64, with
vectors, matrices and kernels, two groups, gradients that are missing in some steps, and a rate that changes half way.
The deviation is the largest in any step, over the parameter's largest movement; 1e-7 is allowed.

| algorithm | with | reference | deviation | what the reference does otherwise |
|---|---|---|--:|---|
"""

TAIL = "\nWritten by `python scripts/parity_table.py`, with the packages that `make parity` installs.\n"


def row(case: Case) -> str:
    cells = [f"`{case.name}`", case.what, case.reference, f"{case.deviation():.0e}", case.remark]
    return f"| {' | '.join(cells)} |"


def section(cases: Iterable[Case]) -> str:
    """The section, of what is measured now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages' own
        rows = [row(case) for case in sorted(cases, key=lambda case: case.id.casefold())]
    return HEAD + "\n".join(rows) + "\n" + TAIL


def main() -> None:
    """Measure every case, and write the section in the place of the one before."""
    text = PAGE.read_text(encoding="utf-8").partition(HEADING)[0].rstrip("\n")
    PAGE.write_text(f"{text}\n\n{section([*CASES, *MATRIX])}", encoding="utf-8")


if __name__ == "__main__":
    main()
