"""Elsewhere: versions of torch that lack what it does not promise to keep, and systems that are not Linux."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import steprule
from steprule.portability import torch_private

PACKAGE = Path(steprule.__file__).parent
NAMES = PACKAGE / "portability" / "torch_private.py"
PRIVATE = re.compile(
    r"from torch(?:\.\w+)*\._\w+|from torch[.\w]* import [^\n]*\b_\w+"
    r"|torch\._(?!_)\w+|torch(?:\.\w+)+\._[a-z]\w+|torch_optimizer\._\w+"
)
ELSEWHERE = "cli/bench/"  # peers to be compared with are called as they are


def test_private_names_of_torch_stand_in_one_file() -> None:
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        found = PRIVATE.findall(path.read_text(encoding="utf-8"))
        assert not found or path == NAMES or name.startswith(ELSEWHERE), f"{name}: {found}"
    assert PRIVATE.findall("torch._C._x"), "the pattern finds nothing"


def test_every_name_of_the_file_is_told_of_in_its_table() -> None:
    text = NAMES.read_text(encoding="utf-8")
    table = text.replace("_global_...", "_global_optimizer").partition('"""')[2].partition('"""')[0]
    for path in re.findall(r'find\(\s*f?"([^"]+)"', text):
        module, _, name = path.rpartition(":")
        words = [*module.removeprefix("torch.").split("."), *name.split(".")]
        assert any(word[:12] in table for word in words if word.startswith("_")), path


@pytest.mark.parametrize("name", torch_private.OF_OPTIMIZERS)
def test_torch_still_has_what_optimizers_rely_on(name: str) -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)])
    assert hasattr(optimizer, name)


WITHOUT = """
import re, sys, types
from pathlib import Path

source = Path(sys.argv[1]).read_text(encoding="utf-8")
nothing = "def find(path, otherwise=None):\\n    return otherwise\\n\\n"
source = re.sub("def find\\\\(.*?(?=\\nclass Missing)", nothing, source, flags=re.S)
private = types.ModuleType("steprule.portability.torch_private")
sys.modules["steprule.portability.torch_private"] = private
exec(compile(source, "torch_private.py", "exec"), vars(private))

import torch, steprule
assert private.tensor_guards is None
from steprule.kernels import tensor_guards
assert tensor_guards.tensor_guards is None

def trained(make):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    optimizer = make(model.named_parameters())
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(3, 5)).square().mean().backward()
        optimizer.step()
    return model, optimizer

ours, optimizer = trained(lambda p: steprule.AdamW(p, lr=0.1, nonfinite="skip"))
theirs, other = trained(lambda p: torch.optim.AdamW(p, lr=0.1))
for a, b in zip(ours.parameters(), theirs.parameters()):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
optimizer.load_state_dict(other.state_dict())
try:
    optimizer.step_in_backward(ours)
except NotImplementedError as error:
    print(error)
"""


def test_a_torch_that_lacks_all_of_them_trains_the_same() -> None:
    command = [sys.executable, "-c", WITHOUT, str(NAMES)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("step_in_backward needs torch._C._current_graph_task_id, which torch")


ELSEWHERE_THAN_LINUX = """
import os, sys

import torch  # which knows by itself where it runs

for name in ("register_at_fork", "fork", "fchown", "fchmod", "link", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
os.name = "nt"
sys.modules["fcntl"] = sys.modules["resource"] = None
import steprule, steprule.report, steprule.testing
os.name = "posix"  # or pathlib, which was imported before, makes no paths
import steprule.cli

model = torch.nn.Linear(3, 2)
optimizer = steprule.AdamW(model)
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
path = sys.argv[1]
steprule.save(path, optimizer, model, keep=2)
steprule.load(path, optimizer, model)
print(optimizer.steps_taken)
"""


def test_nothing_assumes_linux_at_import(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ELSEWHERE_THAN_LINUX, str(tmp_path / "run.safetensors")]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert said.stdout == "1\n", said.stderr
