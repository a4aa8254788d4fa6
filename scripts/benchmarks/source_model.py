"""A catalogued model on this machine, before anything is measured."""

from __future__ import annotations

from collections.abc import Callable

from headpond_workers.models.prepare import prepare


def prepare_source(source: str, *, benchmark: str, progress: Callable[[str], None]) -> None:
    """Download and convert it, unless it is there. Raises HeadpondError."""
    stages: set[str] = set()

    def preparing(stage: str, _done: int, _total: int) -> None:
        if stage not in stages:
            stages.add(stage)
            progress(f"{benchmark}: {source}: {stage}")

    prepare(source, progress=preparing)
