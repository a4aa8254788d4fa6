"""The engine that docs/engines.md shows: taken from the document, built and installed as anyone would."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "engines.md"
_FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TIMEOUT_S = 120.0


def example_files() -> dict[str, str]:
    """Path in the package -> content, as the document shows them."""
    return dict(_FILE.findall(DOCUMENT.read_text(encoding="utf-8")))


def install(files: Mapping[str, str], folder: Path, *, target: Path) -> Path:
    """Write a package's files to `folder`, then build and install it into the folder `target`. Returns target."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--no-input"),
            *("--disable-pip-version-check", "--target", str(target), str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def install_example(folder: Path) -> Path:
    """The target folder with the document's example, made in `folder` unless it is there."""
    target = folder / "target"
    return target if target.is_dir() else install(example_files(), folder / "source", target=target)


@contextmanager
def on_path(*folders: Path) -> Iterator[None]:
    """Let this process import, and find entry points, in these folders for a while."""
    before = list(sys.path)
    sys.path[:0] = map(str, folders)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        importlib.invalidate_caches()


def python_path(*folders: Path) -> dict[str, str]:
    """The variable that puts these folders onto the path of a child process."""
    paths = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
