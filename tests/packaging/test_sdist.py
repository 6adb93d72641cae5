"""The source distribution holds what it takes to build the package, to test it and to read about it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("hatchling", reason="builds the source distribution; in the extra 'dev'")


def built(kind: str, source: Path, folder: Path) -> Path:
    """A distribution, by the backend alone, which fetches nothing."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    archive = built("sdist", ROOT, folder / "made")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.name.startswith("steprule-"))
    return source


def tracked() -> list[str]:
    said = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if said.returncode:
        pytest.skip("this tree is no checkout: what is tracked is not known")
    return said.stdout.splitlines()


@pytest.mark.slow
def test_all_that_is_tracked_is_in_it(unpacked: Path) -> None:
    missing = [name for name in tracked() if not (unpacked / name).exists()]
    assert missing == []


@pytest.mark.slow
def test_the_wheel_that_is_built_from_it_holds_the_package_alone(unpacked: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(built("wheel", unpacked, tmp_path)) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    sources = {path.relative_to(unpacked).as_posix() for path in (unpacked / "steprule").rglob("*.py")}
    assert sources | {"steprule/py.typed"} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"steprule"}
    assert "](docs/" not in metadata
    assert "Provides-Extra: dev" in metadata


@pytest.mark.slow
def test_its_own_tests_pass_in_it(unpacked: Path) -> None:
    tests = ["tests/test_readme.py", "tests/test_elastic_sgd.py", "tests/test_docs_options.py", "tests/schedules"]
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    said = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout[-3000:]
    where = subprocess.run(
        [sys.executable, "-c", "import steprule; print(steprule.__file__)"],
        cwd=unpacked,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(unpacked))
