"""The command itself."""

from __future__ import annotations

import subprocess
import sys

import steprule


def test_it_is_a_module_and_knows_its_version() -> None:
    shown = subprocess.run([sys.executable, "-m", "steprule", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"steprule {steprule.__version__}\n"
