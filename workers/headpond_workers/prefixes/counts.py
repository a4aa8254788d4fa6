"""How often stored prefixes were used, and how often not, of one worker instance."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from headpond_workers.prefixes.folders import USES, files_in
from headpond_workers.prefixes.kept_json import read_numbers, write_numbers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """hits: prompts that went on from stored keys and values; hit_tokens: theirs that were not computed. fetched: of
    the hits, those that came from storage. missed: nothing stored begins like the prompt. slower: it would not have
    been quicker. refused: files that were damaged or of something else. not_taken: loaded, and computed all the same.
    saved: files written. dropped: not written, since the disk could not follow or refused."""

    hits: int = 0
    hit_tokens: int = 0
    fetched: int = 0
    missed: int = 0
    slower: int = 0
    refused: int = 0
    not_taken: int = 0
    saved: int = 0
    dropped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(Counts)})


class CountBook:
    """Thread-safe. Goes on from what an earlier process of this instance counted."""

    def __init__(self, folder: Path, instance: str) -> None:
        self._path = folder / USES / f"{instance}.json"
        self._lock = threading.Lock()
        self._counts = self._kept = _read(self._path)

    @property
    def now(self) -> Counts:
        return self._counts

    def add(self, **more: int) -> None:
        with self._lock:
            self._counts = self._counts + Counts(**more)

    def keep(self) -> None:
        """Write them down if they are others than before. A disk that refuses is logged."""
        counts = self._counts
        if counts == self._kept:
            return
        try:
            write_numbers(self._path, asdict(counts))
            self._kept = counts
        except OSError as error:
            logger.warning("kv_counts_not_kept file=%s error=%s", self._path, error.strerror or error)


def counts_in(folder: Path) -> Counts:
    """Of all instances together. folder: of one fingerprint."""
    total = Counts()
    for found in files_in(folder / USES):
        if not found.path.name.startswith("."):
            total += _read(found.path)
    return total


def _read(path: Path) -> Counts:
    kept = read_numbers(path)
    known = {each.name: kept.get(each.name, 0.0) for each in fields(Counts)}
    return replace(Counts(), **{name: int(value) for name, value in known.items() if 0 <= value < 1e15})
