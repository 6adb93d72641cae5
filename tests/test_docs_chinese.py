"""A page in Chinese says what its source says today: the same headings, the same code, the same rows of tables."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {path.stem: path for path in (DOCS / "zh").glob("*.md")}
PAIRS = {f"docs/{name}.md": (DOCS / f"{name}.md", path) for name, path in PAGES.items()}
PAIRS["README.md"] = (DOCS.parent / "README.md", DOCS.parent / "README.zh-CN.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def without_comments(language: str, code: str) -> str:
    """Code as it runs: what is said beside it may be translated."""
    if language != "python":
        return re.sub(r"[ \t]*#.*", "", code)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type != tokenize.COMMENT]
    return "\n".join(line.rstrip() for line in tokenize.untokenize(tokens).splitlines())


def code(page: str) -> list[tuple[str, str]]:
    return [(language, without_comments(language, text)) for language, text in FENCE.findall(page)]


def headings(page: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", FENCE.sub("", page), re.M)]


def rows(page: str) -> list[list[str]]:
    """The code in the first cell of each row of each table."""
    return [re.findall(r"`([^`]+)`", cell) for cell in re.findall(r"^\| (.*?) \|", FENCE.sub("", page), re.M)]


def numbers(page: str) -> list[str]:
    """The cells of tables that are a number, in order."""
    return re.findall(r"(?<=\| )\d+(?:\.\d+)?(?= \|)", page)


def test_the_pages_that_people_begin_with_are_there() -> None:
    assert set(PAGES) >= {"start", "groups", "schedules", "rules", "checkpoints"}


@pytest.mark.parametrize("name", PAIRS)
def test_a_translated_page_is_as_new_as_its_source(name: str) -> None:
    source, translated = (path.read_text(encoding="utf-8") for path in PAIRS[name])
    assert headings(translated) == headings(source)
    assert code(translated) == code(source)
    assert rows(translated) == rows(source)
    assert numbers(translated) == numbers(source)
    assert len(re.findall(r"[\u4e00-\u9fff]", translated)) > len(source) / 12, "it is not in Chinese"


@pytest.mark.parametrize("name", PAIRS)
def test_what_it_links_to_is_there(name: str) -> None:
    _, path = PAIRS[name]
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", FENCE.sub("", path.read_text(encoding="utf-8"))):
        assert (path.parent / link).exists(), link
