"""The built site in a real browser, Chromium without a window: scripts, formulas, search, and two widths."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HTML = Path(__file__).parents[2] / "build" / "docs" / "html"
SHOTS = HTML.parent / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()


def opened(url: str, folder: Path, *options: str) -> tuple[str, list[str]]:
    """What a page has become when its scripts have run, and what the console says."""
    command = [
        *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-extensions", "--enable-logging=stderr", f"--user-data-dir={folder}"),
        *("--virtual-time-budget=30000", "--timeout=60000", *options, url),
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return said.stdout, re.findall(r"CONSOLE.*", said.stderr)


PAGES = [
    "index.html",
    "reference/AdamW.html",
    "reference/Muon.html",
    "gallery.html",
    "comparison.html",
    "zh/start.html",
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_and_the_console_is_silent(page: str, site: str, tmp_path: Path) -> None:
    document, console = opened(f"{site}/{page}", tmp_path, "--dump-dom")
    assert "</html>" in document
    assert console == []


def test_formulas_are_rendered(site: str, tmp_path: Path) -> None:
    document, _ = opened(f"{site}/reference/AdamW.html", tmp_path, "--dump-dom")
    written = (HTML / "reference" / "AdamW.html").read_text(encoding="utf-8").count('class="math notranslate')
    assert written > 1
    assert document.count("<mjx-container") == written
    assert "\\begin{" not in re.sub(r"<script.*?</script>", "", document, flags=re.S)
    assert 'data-mml-node="merror"' not in document


def test_search_finds_adamw(site: str, tmp_path: Path) -> None:
    document, console = opened(f"{site}/search.html?q=AdamW", tmp_path, "--dump-dom")
    found = re.findall(r'href="([^"]*)"', document.partition('id="search-results"')[2])
    assert any("reference/AdamW" in link for link in found), found[:10]
    assert console == []


FRAME = """<!doctype html><body style="margin:0;overflow:hidden">
<iframe id="f" src="SITE" style="width:WIDTHpx;height:1600px;border:0"></iframe>
<script>onload = () => {
  const inner = document.getElementById("f").contentDocument;
  const { scrollWidth, clientWidth } = inner.documentElement;
  document.title = [scrollWidth, clientWidth, getComputedStyle(inner.body).backgroundColor].join("; ");
}</script>"""


def framed(page: str, width: int, site: str, folder: Path, shot: Path, *options: str) -> tuple[int, int, str]:
    """A picture of a page in a frame of so many pixels, for Chromium makes no window as narrow as a phone; how wide the
    page would be, how wide it is, and its background."""
    shot.parent.mkdir(parents=True, exist_ok=True)
    shot.unlink(missing_ok=True)
    inside = HTML / f"frame-{shot.stem}.html"
    inside.write_text(FRAME.replace("SITE", f"{site}/{page}.html").replace("WIDTH", str(width)), encoding="utf-8")
    try:
        given: Any = (f"{site}/{inside.name}", folder, f"--window-size={max(width, 600)},1600", *options)
        document, _ = opened(*given, "--dump-dom")
        opened(*given, f"--screenshot={shot}")
    finally:
        inside.unlink()
    asked, there, colour = re.findall(r"<title>(\d+); (\d+); ([^<]+)</title>", document)[0]
    return int(asked), int(there), colour


@pytest.mark.parametrize(("name", "width"), [("wide", 1280), ("phone", 390)])
@pytest.mark.parametrize("page", ["index", "gallery", "reference/AdamW", "zh/start"])
def test_a_page_fits_two_widths(page: str, name: str, width: int, site: str, tmp_path: Path) -> None:
    shot = SHOTS / f"{page.replace('/', '-')}-{name}.png"
    asked, there, _ = framed(page, width, site, tmp_path, shot)
    assert asked <= there, "the page is wider than the screen"
    assert struct.unpack(">II", shot.read_bytes()[16:24])[0] == max(width, 600)


def test_it_is_dark_where_the_reader_wants_it(site: str, tmp_path: Path) -> None:
    colours = []
    for name, options in (("light", ()), ("dark", ("--force-dark-mode",))):
        *_, colour = framed("start", 1280, site, tmp_path / name, SHOTS / f"start-{name}.png", *options)
        colours.append(sum(map(int, re.findall(r"\d+", colour)[:3])))
    assert colours[0] > 600
    assert colours[1] < 200
