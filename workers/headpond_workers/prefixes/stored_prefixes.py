"""Stored prefixes as a worker uses them: what `PrefixUse` promises a job.

Kept: of each job that finished, prompt and answer, if they have `kv_min_tokens` or more and at least a block more than
what is stored of them already. A session's next turn begins with both.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path

from headpond.errors import BlobCorrupt, BlobMissing, EngineError, HeadpondError, PrefixRefused
from headpond.tables import KvModel
from headpond_workers.engines.protocol import Finish, PrefixCopy, PrefixEngine, Sequence
from headpond_workers.prefixes.blocks import BLOCK_TOKENS, block_hashes, prefix_name
from headpond_workers.prefixes.choice import Offer, Tier, choose, prefill_s
from headpond_workers.prefixes.counts import CountBook
from headpond_workers.prefixes.local import LocalPrefixes
from headpond_workers.prefixes.rates import RateBook
from headpond_workers.prefixes.remote import RemotePrefixes
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

MOST_UNWRITTEN = 2
"""Copies that wait for the disk: each is in memory, or in a file of its size. What comes then is not kept."""
LOOK_EVERY_S = 10.0
AWAY_S = 30.0
"""How long storage is not asked for prefixes after it was away."""
STOP_S = 5.0
BYTES_PER_GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Shelf:
    """What there is of one fingerprint."""

    local: LocalPrefixes
    remote: RemotePrefixes | None
    rates: RateBook
    counts: CountBook


class StoredPrefixes:
    """Of one worker. A PrefixUse. Thread-safe."""

    def __init__(
        self, engine: PrefixEngine, kv: Path, *, model: str, instance: str, table: KvModel, blobs: Blobs | None
    ) -> None:
        """kv: `kv_folder` of the state folder. blobs: storage, for kv = "storage"."""
        self._engine, self._kv, self._model, self._instance = engine, kv, model, instance
        self._table, self._blobs = table, blobs
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.Lock()
        self._unwritten: queue.Queue[tuple[_Shelf, PrefixCopy] | None] = queue.Queue(MOST_UNWRITTEN)
        self._leave = threading.Event()
        self._away_until = 0.0
        self._threads = [threading.Thread(target=self._write, name="kv-writes", daemon=True)]
        if blobs is not None:
            self._threads.append(threading.Thread(target=self._look, name="kv-looks", daemon=True))

    def start(self) -> None:
        self._shelf(None)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Write what waits, for a moment at most."""
        self._leave.set()
        try:
            self._unwritten.put(None, timeout=STOP_S)
        except queue.Full:
            logger.warning("kv_prefixes_unwritten model=%s", self._model)
        self._threads[0].join(STOP_S)

    def load(self, sequence: Sequence, proceed: Callable[[], bool]) -> int:
        try:
            return self._load(sequence, proceed)
        except Exception as error:  # noqa: BLE001 - an engine that is broken says so again when it is asked to generate
            logger.warning("kv_prefix_not_loaded model=%s error=%s", self._model, error)
            return 0

    def note(self, sequence: Sequence, finish: Finish, loaded: int) -> None:
        try:
            self._note(sequence, finish, loaded)
        except Exception as error:  # noqa: BLE001 - the answer is there, and nothing of it may be lost
            logger.warning("kv_prefix_not_noted model=%s error=%s", self._model, error)

    def keep(self, sequence: Sequence, made: Seq[int]) -> None:
        try:
            self._keep((*sequence.prompt, *sequence.generated, *made), sequence.adapter)
        except Exception as error:  # noqa: BLE001 - the job has ended, and nothing of it may come back
            logger.warning("kv_prefix_not_kept model=%s error=%s", self._model, error)

    def _note(self, sequence: Sequence, finish: Finish, loaded: int) -> None:
        details, ids = finish.details, len(sequence.prompt) + len(sequence.generated)
        shelf = None if "cached_tokens" not in details else self._shelf(sequence.adapter)
        if shelf is None:
            return
        cached = int(details["cached_tokens"])
        shelf.rates.prefilled(ids - cached, details.get("prefill_s", 0.0))
        if not loaded:
            return
        if cached >= loaded / 2:
            shelf.counts.add(hits=1, hit_tokens=cached)
            logger.info("kv_prefix_used model=%s prompt_tokens=%d cached_tokens=%d", self._model, ids, cached)
        else:
            shelf.counts.add(not_taken=1)
            logger.warning("kv_prefix_not_taken model=%s loaded=%d cached_tokens=%d", self._model, loaded, cached)

    def _load(self, sequence: Sequence, proceed: Callable[[], bool]) -> int:
        ids = (*sequence.prompt, *sequence.generated)
        shelf = self._shelf(sequence.adapter) if len(ids) >= self._table.kv_min_tokens else None
        if shelf is None:
            return 0
        held = self._engine.held_prefix(ids, adapter=sequence.adapter)
        found = self._find(shelf, ids)
        if not found:
            shelf.counts.add(missed=1)
            return 0
        # What is on the device already is not gained by loading it.
        offers = [replace(offer, tokens=offer.tokens - held) for offer in found if offer.tokens > held]
        if not offers:
            return 0
        chosen = choose(offers, shelf.rates.now)
        if chosen is None:
            shelf.counts.add(slower=1)
            return 0
        if chosen.tier is Tier.STORAGE and not self._fetch(shelf, chosen, proceed):
            return 0
        began = time.monotonic()
        try:
            covered = self._engine.load_prefix(shelf.local.path(chosen.name))
        except PrefixRefused as error:
            shelf.counts.add(refused=1)
            logger.warning("kv_prefix_refused model=%s error=%s", self._model, error)
            shelf.local.remove(chosen.name)
            if chosen.tier is Tier.STORAGE and shelf.remote is not None:
                shelf.remote.forget(chosen.name)
            return 0
        if not covered:
            return 0  # the engine had no room
        shelf.rates.loaded(chosen.size_bytes, time.monotonic() - began)
        shelf.local.use(chosen.name)
        return min(held + chosen.tokens, covered)

    def _find(self, shelf: _Shelf, ids: Seq[int]) -> list[Offer]:
        """The longest stored beginning here, and in storage."""
        hashes = block_hashes(shelf.local.fingerprint, ids)
        offers = []
        if (found := shelf.local.find(hashes)) is not None:
            offers.append(Offer(Tier.LOCAL, found.name, found.tokens, found.size_bytes))
        if shelf.remote is not None and time.monotonic() >= self._away_until:
            found = shelf.remote.find(hashes)
            if found is not None:
                offers.append(Offer(Tier.STORAGE, found.name, found.tokens, found.size_bytes))
        return offers

    def _fetch(self, shelf: _Shelf, chosen: Offer, proceed: Callable[[], bool]) -> bool:
        """Whether the prefix is on this machine now."""
        if shelf.remote is None:
            return False
        began = time.monotonic()
        until = began + prefill_s(chosen, shelf.rates.now)
        try:
            here = shelf.remote.fetch(chosen.name, shelf.local.path(chosen.name), until=until, proceed=proceed)
        except HeadpondError as error:
            logger.warning("kv_prefix_not_fetched model=%s error=%s", self._model, error)
            if not isinstance(error, BlobMissing | BlobCorrupt):
                self._away_until = time.monotonic() + AWAY_S
            return False
        seconds = time.monotonic() - began
        if here:
            shelf.rates.fetched(chosen.size_bytes, seconds)
            shelf.counts.add(fetched=1)
            shelf.local.make_room()
        elif seconds >= until - began:
            # At least this is known of its rate: the next one is chosen by it.
            shelf.rates.fetched(max(1, chosen.size_bytes // 2), seconds)
        return here

    def _keep(self, ids: tuple[int, ...], adapter: str | None) -> None:
        shelf = self._shelf(adapter) if len(ids) >= self._table.kv_min_tokens else None
        if shelf is None:
            return
        hashes = block_hashes(shelf.local.fingerprint, ids)
        found = shelf.local.find(hashes)
        # Of an answer the last token is not held.
        if found is not None and found.tokens + BLOCK_TOKENS >= len(ids) - 1:
            shelf.local.use(found.name)
            return
        if self._unwritten.full():
            shelf.counts.add(dropped=1)
            logger.warning("kv_prefix_not_kept model=%s error=the disk does not follow", self._model)
            return
        copy = self._engine.take_prefix(ids, adapter=adapter)
        if copy is None:
            return
        try:
            self._unwritten.put_nowait((shelf, copy))
        except queue.Full:
            shelf.counts.add(dropped=1)
            copy.discard()

    def _shelf(self, adapter: str | None) -> _Shelf | None:
        """None: with this adapter the engine loads and saves nothing now."""
        fingerprint = self._engine.prefix_fingerprint(adapter)
        if fingerprint is None:
            return None
        with self._lock:
            shelf = self._shelves.get(fingerprint)
            if shelf is None:
                max_bytes = int(self._table.kv_max_gb * BYTES_PER_GB)
                local = LocalPrefixes(self._kv, self._model, fingerprint, max_bytes=max_bytes)
                remote = None if self._blobs is None else RemotePrefixes(self._blobs, self._model, fingerprint)
                rates, counts = RateBook(local.folder), CountBook(local.folder, self._instance)
                shelf = self._shelves[fingerprint] = _Shelf(local, remote, rates, counts)
            return shelf

    def _write(self) -> None:
        """The writing thread."""
        while True:
            try:
                item = self._unwritten.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                self._keep_figures()
                continue
            if item is None:
                self._keep_figures()
                return
            shelf, copy = item
            # Whoever finds the file finds with it how quick this machine is.
            shelf.rates.keep()
            try:
                name = prefix_name(shelf.local.fingerprint, copy.ids)
                copy.write(shelf.local.path(name))
                shelf.counts.add(saved=1)
                if self._table.kv == "storage":
                    shelf.local.send(name)
                shelf.local.make_room()
            except (EngineError, OSError) as error:
                shelf.counts.add(dropped=1)
                logger.warning("kv_prefix_not_kept model=%s error=%s", self._model, error)
            if self._unwritten.empty():
                self._keep_figures()

    def _keep_figures(self) -> None:
        with self._lock:
            shelves = list(self._shelves.values())
        for shelf in shelves:
            shelf.rates.keep()
            shelf.counts.keep()

    def _look(self) -> None:
        """The thread that renews what is known of storage."""
        while not self._leave.is_set():
            with self._lock:
                remotes = [shelf.remote for shelf in self._shelves.values() if shelf.remote is not None]
            try:
                for remote in remotes:
                    remote.look()
                self._away_until = 0.0
            except HeadpondError as error:
                self._away_until = time.monotonic() + AWAY_S
                logger.warning("kv_storage_not_asked model=%s error=%s", self._model, error)
            self._leave.wait(LOOK_EVERY_S)
