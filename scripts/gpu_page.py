"""One table of what scripts/gpu.sh has measured, with the card's name: FOLDER/table.md, for docs/performance.md.

It is written of whatever is there: a part that failed or ran out of time stands below the table, with its status.
"""

import json
import sys
from pathlib import Path
from typing import Any

from steprule.cli.bench import measured_where
from steprule.cli.bench.table import Grid, digits
from steprule.replacing import replacing

COLUMNS = ("case", "ms", "GB/s", "of a copy's", "torch fused, ms", "GB/s", "ratio", "foreach", "peak MB", "fused's")
NOTE = (
    "ms: the median of a step. GB/s: of the bytes that ours reads and writes; of a copy's: in parts of those of "
    "`y.copy_(x)`. ratio, foreach: our time over that of torch's fused step, and over that of torch's foreach; below 1 "
    "steprule is faster. peak: memory of a first step above parameters and gradients, with no cache filled."
)


def row(result: dict[str, Any]) -> list[str]:
    """A result of `steprule bench --json` as a line of the table."""
    medians = {name: spread["median"] for name, spread in result["seconds"].items()}
    ratios = {name: digits(spread["median"]) for name, spread in result["ratios"].items()}
    peaks = {name: digits(peak / 1e6) for name, peak in result["peaks"].items()}
    moved, copy = result["bytes"], result["bandwidth_bytes"]

    def milliseconds(name: str) -> str:
        return digits(1e3 * medians[name]) if name in medians else ""

    def rate(name: str) -> str:
        return digits(moved / medians[name] / 1e9) if moved and name in medians else ""

    share = moved / medians["steprule"] / (copy / medians["memory"]) if moved and copy and "memory" in medians else 0.0
    return [
        result["case"],
        *(milliseconds("steprule"), rate("steprule"), digits(share) if share else ""),
        *(milliseconds("fused"), rate("fused"), ratios.get("fused", ""), ratios.get("foreach", "")),
        *(peaks.get("steprule", ""), peaks.get("fused", "")),
    ]


def read(path: Path) -> dict[str, Any] | str:
    """What a part has measured, or why that can't be said."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"{path.name} can't be read: {error}"
    return found


def page(folder: Path) -> str:
    """The table of all files in a folder, in the order in which the parts have ended."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    found = list(map(read, files))
    runs = [run for run in found if isinstance(run, dict)]
    unread = [why for why in found if isinstance(why, str)]
    check, summary = folder / "check.txt", folder / "summary.txt"
    where = (
        measured_where(runs[0]) if runs else check.read_text(encoding="utf-8").strip() if check.exists() else "no GPU"
    )
    rows = [row(result) for run in runs for result in run["results"]]
    table = Grid("", COLUMNS, rows).markdown() if rows else "Nothing was measured."
    parts = [*unread, *(summary.read_text(encoding="utf-8").splitlines() if summary.exists() else [])]
    return "\n\n".join([f"# Step times on {where}", table, NOTE, "\n".join(f"- {part}" for part in parts)]) + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    text = page(folder)
    with replacing(folder / "table.md") as file:
        file.write(text.encode())
    print(text)


if __name__ == "__main__":
    main()
