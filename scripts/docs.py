"""Builds the documentation site into build/docs/html, out of docs/ and of the docstrings of every public name.

    python scripts/docs.py

Warnings are errors: a link that leads nowhere, a docstring that is no reST.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import steprule
import steprule.modifiers
import steprule.report
import steprule.rule
import steprule.schedules
import steprule.testing

ROOT = Path(__file__).parents[1]
SOURCE, HTML = ROOT / "build" / "docs" / "source", ROOT / "build" / "docs" / "html"

GUIDES = {
    "Begin": ["start", "from_torch", "gallery", "comparison"],
    "Guides": [
        "choose",
        "algorithms",
        "hyperparameters",
        "options",
        "groups",
        "schedules",
        "rules",
        "modifiers",
        "checkpoints",
        "low_bits",
        "memory",
    ],
    "In use": ["distributed", "clients", "performance", "reliability"],
    "How it is built": ["architecture", "contributing", "step_time", "step_time_h200"],
}
CHINESE = ["start", "groups", "schedules", "rules", "checkpoints"]

PARTS: dict[str, ModuleType] = {
    "modifiers": steprule.modifiers,
    "schedules": steprule.schedules,
    "rule": steprule.rule,
    "report": steprule.report,
    "testing": steprule.testing,
}


def public() -> list[str]:
    """The full name of everything that has a page."""
    own = [f"steprule.{name}" for name in steprule.__all__ if not inspect.ismodule(getattr(steprule, name))]
    parts = [f"{module.__name__}.{name}" for module in PARTS.values() for name in names_of(module)]
    return own + parts


def names_of(module: ModuleType) -> list[str]:
    return list(module.__all__)


def entry(full: str) -> str:
    """The directive for a public name, as everybody writes it."""
    module, _, name = full.rpartition(".")
    found: Any = getattr(sys.modules[module], name)
    if inspect.isclass(found):
        members = "" if issubclass(found, BaseException) else "   :members:\n"
        return f".. autoclass:: {full}\n{members}"
    if inspect.isroutine(found):
        return f".. autofunction:: {full}\n"
    lines = "\n".join(f"   {line}" for line in said_of(found, name))
    return f".. py:data:: {full}\n\n{lines}\n"


def said_of(value: Any, name: str) -> list[str]:
    """What stands under the assignment of a name that is no class and no function, where its class is defined."""
    found: list[str] = ModuleAnalyzer.for_module(type(value).__module__).find_attr_docs()[("", name)]
    return found


def page(title: str, entries: Iterable[str]) -> str:
    return "\n".join([title, "=" * len(title), "", *map(entry, entries)])


def write_reference(folder: Path) -> list[str]:
    """A page for each algorithm, and for each part of the library; their names, in order."""
    folder.mkdir()
    algorithms = list(steprule.algorithms.names())
    pages = {name: page(name, [f"steprule.{name}"]) for name in algorithms}
    rest = [name for name in steprule.__all__ if name not in algorithms and name != "Optimizer"]
    functions = [f"steprule.{name}" for name in rest if not inspect.ismodule(getattr(steprule, name))]
    pages = {"optimizer": page("Optimizer", ["steprule.Optimizer"]), **pages, "functions": page("Functions", functions)}
    for name, module in PARTS.items():
        pages[name] = page(module.__name__, [f"{module.__name__}.{own}" for own in names_of(module)])
    for name, text in pages.items():
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    return list(pages)


def within(text: str) -> str:
    """A page of the repository as one of the site: what it links to beside docs/ is named, not linked."""
    text = text.replace("](../CONTRIBUTING.md)", "](contributing.md)").replace(
        "](CONTRIBUTING.md)", "](contributing.md)"
    )
    text = (
        re.sub(r"\]\(docs/", "](", text)
        .replace("](README.md)", "](index.md)")
        .replace("](README.zh-CN.md)", "](zh-CN.md)")
    )
    return re.sub(r"\[`?([^\]`]+)`?\]\((?:\.\./)*(?:examples|steprule|tests|benchmarks|scripts)[^)]*\)", r"`\1`", text)


def toctree(caption: str, pages: Iterable[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def prepare() -> None:
    """Lay out the sources of the site."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE)
    reference = write_reference(SOURCE / "reference")
    for source, name in (("CONTRIBUTING.md", "contributing"), ("README.md", "index"), ("README.zh-CN.md", "zh-CN")):
        shutil.copy(ROOT / source, SOURCE / f"{name}.md")
    for path in [*SOURCE.glob("*.md"), *SOURCE.glob("zh/*.md")]:
        path.write_text(within(path.read_text(encoding="utf-8")), encoding="utf-8")
    listed = {name for names in GUIDES.values() for name in names} | {"index", "zh-CN"}
    others = sorted(path.stem for path in SOURCE.glob("*.md") if path.stem not in listed)
    trees = [toctree(caption, [*names, *(others if caption == "In use" else [])]) for caption, names in GUIDES.items()]
    trees.append(toctree("Reference", [f"reference/{name}" for name in reference]))
    trees.append(toctree("中文", ["zh-CN", *(f"zh/{name}" for name in CHINESE)]))
    index = SOURCE / "index.md"
    index.write_text(index.read_text(encoding="utf-8") + "\n" + "\n".join(trees), encoding="utf-8")


def main() -> None:
    prepare()
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(SOURCE), str(HTML)]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
