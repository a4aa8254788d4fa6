"""What loading and prefilling cost on this machine, as measured, kept for the next process."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from headpond_workers.prefixes.kept_json import read_numbers, write_numbers

logger = logging.getLogger(__name__)

RATES_FILE = "rates.json"
NEWEST_SHARE = 0.3
"""Of the newest measurement in the average."""
LEAST_PREFILL_TOKENS = 64
"""Fewer tell more of what runs beside them."""
FIRST_DISK_BYTES_PER_S = 100e6
FIRST_STORAGE_BYTES_PER_S = 20e6
"""Until they are measured: slow, so that a first try is made only where it would pay by far."""


@dataclass(frozen=True, slots=True)
class Rates:
    """prefill_tokens_per_s: of this engine; 0 while it was not measured. disk_bytes_per_s: from a file to an engine
    that has it, checked. storage_bytes_per_s: from storage to a file."""

    prefill_tokens_per_s: float = 0.0
    disk_bytes_per_s: float = FIRST_DISK_BYTES_PER_S
    storage_bytes_per_s: float = FIRST_STORAGE_BYTES_PER_S


class RateBook:
    """The rates of one model, engine and machine. Thread-safe; of several processes the last one's figures stay."""

    def __init__(self, folder: Path) -> None:
        """folder: where rates.json is, or will be. A file that cannot be read counts as none."""
        self._path = folder / RATES_FILE
        self._lock = threading.Lock()
        kept = read_numbers(self._path)
        known = {each.name: kept[each.name] for each in fields(Rates) if _is_rate(kept.get(each.name))}
        self._rates = Rates(**known)
        self._measured = set(known)
        self._kept = self._rates

    @property
    def now(self) -> Rates:
        return self._rates

    def prefilled(self, tokens: int, seconds: float) -> None:
        if tokens >= LEAST_PREFILL_TOKENS:
            self._note("prefill_tokens_per_s", tokens, seconds)

    def loaded(self, size_bytes: int, seconds: float) -> None:
        self._note("disk_bytes_per_s", size_bytes, seconds)

    def fetched(self, size_bytes: int, seconds: float) -> None:
        self._note("storage_bytes_per_s", size_bytes, seconds)

    def keep(self) -> None:
        """Write them down if they are others than before. A disk that refuses is logged: they are measured again."""
        rates = self._rates
        if rates == self._kept:
            return
        try:
            write_numbers(self._path, asdict(rates))
            self._kept = rates
        except OSError as error:
            logger.warning("kv_rates_not_kept file=%s error=%s", self._path, error.strerror or error)

    def _note(self, name: str, amount: float, seconds: float) -> None:
        if amount <= 0 or seconds <= 0:
            return
        newest = amount / seconds
        with self._lock:
            before: float = getattr(self._rates, name)
            share = NEWEST_SHARE if name in self._measured else 1.0
            self._measured.add(name)
            self._rates = replace(self._rates, **{name: before + share * (newest - before)})


def _is_rate(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
