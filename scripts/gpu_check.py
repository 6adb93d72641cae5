"""Says at once what scripts/gpu.sh would miss on this machine, and takes one step on its GPU."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

NEEDED = ("torch", "triton", "numpy", "llvmlite", "safetensors", "rich", "typer", "pytest", "hypothesis")


def missing() -> list[str]:
    """What is not there, in words."""
    found = [f"the package {name}" for name in NEEDED if importlib.util.find_spec(name) is None]
    if not (os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")):
        found.append("a C compiler (gcc, clang or $CC), with which Triton builds its launchers")
    folders = {sysconfig.get_path("include", scheme) for scheme in (sysconfig.get_default_scheme(), "posix_prefix")}
    if not any(Path(folder, "Python.h").exists() for folder in folders):
        found.append(f"the header Python.h (python3-dev) in {' or '.join(folders)}, which Triton's launchers include")
    return found


def main() -> None:
    if lacking := missing():
        sys.exit("".join(f"this machine lacks {what}\n" for what in lacking))
    import torch

    if not torch.cuda.is_available():
        sys.exit("there is no GPU that torch can use here")
    import steprule

    p = torch.ones(3, device="cuda", requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = steprule.SGD([p], lr=0.5, backend="triton")
    optimizer.step()
    if p.tolist() != [0.5] * 3:
        sys.exit(f"a step of SGD from 1 along 1 by 0.5 gave {p.tolist()}")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {optimizer.explain().splitlines()[0]}")


if __name__ == "__main__":
    main()
