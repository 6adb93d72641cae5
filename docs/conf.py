"""How the documentation site is built: `make docs` copies docs/ and runs Sphinx on it."""

from __future__ import annotations

import inspect
from typing import Any

import steprule

project = "steprule"
author = "the steprule authors"
release = version = steprule.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "myst_parser"]
extensions.append("sphinx-mathjax-offline")  # formulas are rendered without a network
html_theme = "furo"
html_title = f"steprule {release}"
html_static_path: list[str] = []
exclude_patterns = ["conf.py"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types, units and shapes
autodoc_default_options = {"show-inheritance": True}
napoleon_use_rtype = False
suppress_warnings = ["myst.header"]
nitpicky = False

HIDDEN = {"__init__"}


def skip(app: Any, what: str, name: str, found: Any, skipped: bool, options: Any) -> bool | None:
    """Of an algorithm only what it adds: torch's own methods are torch's to describe."""
    if name in HIDDEN or (what == "class" and inspect.isfunction(found) and found.__module__.startswith("torch.")):
        return True
    return None


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip)
