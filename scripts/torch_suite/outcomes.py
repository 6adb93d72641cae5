"""A plugin of pytest that writes how each test ended, one a line, into the file that OUTCOMES names."""

import os
from typing import Any

ended: dict[str, str] = {}
WORST = ["failed", "skipped", "passed"]


def pytest_runtest_logreport(report: Any) -> None:
    ended[report.nodeid] = min(ended.get(report.nodeid, "passed"), report.outcome, key=WORST.index)


def pytest_sessionfinish(session: Any) -> None:
    if not hasattr(session.config, "workerinput"):  # of pytest-xdist's processes, the one that hears of every test
        with open(os.environ["OUTCOMES"], "w") as file:
            file.writelines(f"{outcome}\t{name}\n" for name, outcome in sorted(ended.items()))
