"""Modules of scripts/benchmarks for tests: they import each other by file name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "benchmarks"


class Modules:
    """Each by its name, as an attribute."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@contextmanager
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They can be imported, and all that were are forgotten again afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = {path.stem for path in FOLDER.glob("[!_]*.py")}
    assert not names & sys.modules.keys(), "another test has left modules behind"
    try:
        yield
    finally:
        for name in names & sys.modules.keys():
            del sys.modules[name]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Modules, which are forgotten again afterwards."""
    with importable(monkeypatch):
        yield Modules()


def measured(modules: Any, kind: str, headpond: dict[str, Any], peer: dict[str, Any]) -> Any:
    """Ten pairs of these samples."""
    pairs = [modules.pairs.Pair(modules.pairs.order_of(n), headpond, peer) for n in range(10)]
    return modules.document.Measurement(modules.document.Kind(kind), kind, "work", "ours", "theirs", pairs)


def judged(modules: Any, kind: str, headpond: dict[str, Any], peer: dict[str, Any]) -> list[tuple[float, str | None]]:
    """Median and verdict of each row that has any."""
    rows = modules.report.rows_of(measured(modules, kind, headpond, peer))
    return [(round(row.estimate.median, 6), row.verdict) for row in rows if row.estimate]
