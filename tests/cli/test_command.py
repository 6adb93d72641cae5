"""The command itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

import steprule


def test_it_is_a_module_and_knows_its_version() -> None:
    shown = subprocess.run([sys.executable, "-m", "steprule", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"steprule {steprule.__version__}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
def test_an_interrupt_while_it_is_imported_is_no_traceback() -> None:
    code = "import steprule_command; print('begun', flush=True); steprule_command.main()"
    command = [sys.executable, "-c", code, "demo"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.1)  # into the import of torch, which takes ten times as long
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said == ""
