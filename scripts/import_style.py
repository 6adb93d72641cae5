"""A contract for import-linter: how an import is written says whether it leaves the room."""

from __future__ import annotations

from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output

__all__ = ["ImportStyle"]


class ImportStyle(Contract):
    """Between rooms an import names the room from the package root; inside a room it is a dot and the file."""

    type_name = "import_style"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        root = self.session_options["root_packages"][0]
        own = [name for name in graph.modules if name.partition(".")[0] == root]
        pairs = [(one, other) for one in own for other in graph.find_modules_directly_imported_by(one) if other in own]
        wrong: list[dict[str, Any]] = []
        for one, other in sorted(pairs):
            if other.startswith(f"{one}."):  # a room's front gathers what lies behind it
                continue
            inside = room(graph, one) == room(graph, other)
            for known in graph.get_import_details(importer=one, imported=other):
                line = known["line_contents"].strip()
                if line.startswith("from .") is not inside:
                    wrong.append({"module": one, "line": known["line_number"], "text": line, "inside": inside})
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for found in check.metadata["wrong"]:
            said = "inside a room: write a dot and the file" if found["inside"] else "between rooms: name the room"
            output.print_error(f"{found['module']}, line {found['line']}: {found['text']}  ({said})", bold=False)


def room(graph: ImportGraph, module: str) -> str:
    """The package in which a module stands; one that is a package stands for itself."""
    return module if graph.find_children(module) else module.rpartition(".")[0]
