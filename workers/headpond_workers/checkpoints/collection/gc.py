"""The collector: removes what nothing leads to, in two runs with a grace between. docs/checkpoint-format.md.

Each run does what is due: it drops intents of pushes that nobody goes on with, carries out the rounds whose grace is
over, and condemns what nothing leads to now, for a later run. It may be killed anywhere, and others may run beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from headpond.errors import BlobChanged, BlobCorrupt, BlobMissing, CollectionUnderWay, StorageUnavailable
from headpond_workers.checkpoints.collection.gc_documents import MAX_ROUNDS, Round
from headpond_workers.checkpoints.collection.gc_mark import (
    Mark,
    collectable,
    mark,
    read_intent,
    read_intents,
    read_versions,
)
from headpond_workers.checkpoints.collection.gc_state import GcStateAt, GcStore
from headpond_workers.checkpoints.names import CHUNKS, condemned_key, epoch_of, intent_key
from headpond_workers.checkpoints.parallel import THREADS, in_parallel
from headpond_workers.checkpoints.registry import Registry, VersionAt
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

HOUR_MS = 3_600_000
GRACE_MS = 24 * HOUR_MS
LEASE_MS = 15 * 60_000
MAX_KEYS = 500_000
"""Of one round; what is left waits for the next."""
ABANDONED = "its push was given up"
OnProgress = Callable[[str, int, int], None]
"""What is done, how much of it, of how much; 0: not known."""


@dataclass(slots=True)
class Collected:
    """What one run did. kept: condemned in a round that was carried out, but live again. uploads: in parts, given up.
    round: the number of the one that it added; 0: none. not_before_ms: when that may be carried out."""

    intents: int = 0
    versions: int = 0
    rounds: list[int] = field(default_factory=list)
    deleted: int = 0
    deleted_bytes: int = 0
    kept: int = 0
    condemned: int = 0
    condemned_bytes: int = 0
    uploads: int = 0
    round: int = 0
    not_before_ms: int = 0


class Collector:
    """One run after another, of the whole bucket. Raises CollectionUnderWay while another has the lease;
    BlobCorrupt and VersionUnusable if something cannot be read that may be needed: then nothing is removed.

    grace_ms: how old an intent is at least when it is dropped, and how long what is condemned waits. lease_ms: how long
    a collector that was killed keeps others from their runs. now_ms: its clock; what is wrong with it costs pushes
    time, never a version. is_dead: whether the holder of a lease is known to be gone.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        writer: str,
        now_ms: Callable[[], int],
        grace_ms: int = GRACE_MS,
        lease_ms: int = LEASE_MS,
        threads: int = THREADS,
        on_progress: OnProgress = lambda what, done, total: None,
        is_dead: Callable[[str], bool] = lambda holder: False,
    ) -> None:
        self._blobs, self._writer, self._now_ms, self._grace_ms = blobs, writer, now_ms, grace_ms
        self._lease_ms = lease_ms
        self._threads, self._on_progress, self._is_dead = threads, on_progress, is_dead
        self._store = GcStore(blobs, writer=writer)

    def preview(self) -> Collected:
        """What `collect` would do now, as far as it can be told before: what pushes that were given up keep is counted
        once their intents are dropped. It writes nothing."""
        found = Collected()
        at = self._store.read()
        found.intents = sum(
            self._is_old(intent.created_ms) for intent in read_intents(self._blobs, threads=self._threads)
        )
        known = mark(self._blobs, threads=self._threads)
        sizes = dict(collectable(self._blobs))
        lists = self._lists(at.state.rounds if at else ())
        for round_, keys in lists.items():
            if self._is_due(round_):
                found.rounds.append(round_.number)
                for key in self._count(found, keys, known, sizes):
                    del sizes[key]
        waiting = {round_: keys for round_, keys in lists.items() if not self._is_due(round_)}
        self._count_new(found, self._dead(known, sizes, waiting), sizes)
        return found

    def collect(self) -> Collected:
        """Do what is due."""
        done = Collected()
        at = self._lease()
        try:
            self._run(at, done)
        except BaseException:
            # The lease ends by itself where this fails too; the error that is told is the first.
            with suppress(BlobChanged, StorageUnavailable):
                self._release()
            raise
        return done

    def _run(self, at: GcStateAt, done: Collected) -> None:
        self._drop_intents(done)
        done.uploads = self._blobs.abort_uploads(CHUNKS, older_than_s=self._grace_ms / 1000)
        known = self._mark(done)
        # Rounds of the state from before the mark: a round that was added since was not marked for.
        lists = self._lists(at.state.rounds)
        due = {round_: keys for round_, keys in lists.items() if self._is_due(round_)}
        self._on_progress("list", 0, 0)
        sizes = dict(collectable(self._blobs))
        self._carry_out(due, known, sizes, done)
        waiting = {round_: keys for round_, keys in lists.items() if round_ not in due}
        dead = self._dead(known, sizes, waiting)
        self._settle(at, due, dead, done, doubtful=known.has_quarantined)
        self._count_new(done, dead if done.round else (), sizes)

    def _lease(self) -> GcStateAt:
        while True:
            at = self._store.read_or_create()
            holder, until_ms = at.state.holder, at.state.until_ms
            if holder not in ("", self._writer) and until_ms > self._now_ms() and not self._is_dead(holder):
                raise CollectionUnderWay(holder, until_ms=until_ms)
            with suppress(BlobChanged):
                return self._store.swap(at, holder=self._writer, until_ms=self._now_ms() + self._lease_ms)

    def _release(self) -> None:
        at = self._store.read()
        if at is not None and at.state.holder == self._writer:
            self._store.swap(at, holder="", until_ms=0)

    def _drop_intents(self, done: Collected) -> None:
        """Of pushes that are older than the grace; and versions that nobody will complete."""
        for at in read_versions(self._blobs, threads=self._threads):
            if at.document.state is VersionState.PENDING:
                # After its version: there is no version before its intent.
                intent = read_intent(self._blobs, at.document.push)
                if intent is None or self._is_old(intent.created_ms):
                    done.versions += self._abandon(at)
        for intent in read_intents(self._blobs, threads=self._threads):
            if self._is_old(intent.created_ms):
                self._blobs.delete(intent_key(intent.txn))
                done.intents += 1
                logger.info("gc_intent_dropped push=%s model=%s host=%s", intent.txn, intent.model, intent.host)

    def _abandon(self, at: VersionAt) -> bool:
        """Nobody will complete it. False if somebody just did."""
        try:
            Registry(self._blobs, at.document.model, writer=self._writer).swap(
                at, VersionState.DELETED, reason=ABANDONED
            )
        except BlobChanged:
            return False
        logger.info("gc_version_abandoned model=%s version=%d", at.document.model, at.document.number)
        return True

    def _mark(self, done: Collected) -> Mark:
        self._on_progress("mark", 0, 0)
        while True:
            known = mark(self._blobs, threads=self._threads)
            abandoned = [self._abandon(at) for at in known.headless]
            done.versions += sum(abandoned)
            # One that was completed all the same has lost its manifest: the next mark says so.
            if all(abandoned):
                return known

    def _lists(self, rounds: tuple[Round, ...]) -> dict[Round, tuple[str, ...]]:
        """A round whose list is lost has no keys: its end removes nothing, and what it condemned is condemned anew."""
        lists = {}
        for round_ in rounds:
            try:
                lists[round_] = self._store.condemned(round_)
            except (BlobMissing, BlobCorrupt) as error:
                logger.warning("gc_list_lost round=%d error=%s", round_.number, error)
                lists[round_] = ()
        return lists

    def _carry_out(
        self, due: dict[Round, tuple[str, ...]], known: Mark, sizes: dict[str, int], done: Collected
    ) -> None:
        """Delete what was condemned and is not live, of those rounds that are there after the mark: another collector
        may have ended one, and then a push leans on that."""
        after = self._store.read()
        still = after.state.rounds if after is not None else ()
        for round_ in [round_ for round_ in due if round_ in still]:
            done.rounds.append(round_.number)
            dead = self._count(done, due[round_], known, sizes)
            for number, _ in enumerate(in_parallel(self._blobs.delete, dead, threads=self._threads), 1):
                self._on_progress(f"delete round {round_.number}", number, len(dead))
            for key in dead:
                del sizes[key]

    def _settle(
        self,
        at: GcStateAt,
        due: dict[Round, tuple[str, ...]],
        dead: tuple[str, ...],
        done: Collected,
        *,
        doubtful: bool,
    ) -> None:
        """End the rounds that were carried out, add one for what is dead now, and give the lease back: one swap.

        doubtful: whether a version is quarantined. Whoever did that may have had no right to raise the epoch.
        """
        number = at.state.next_round
        while True:
            found = self._store.read()
            if found is None:
                raise BlobMissing("gc/state")
            state = found.state
            changes: dict[str, Any] = {"rounds": tuple(round_ for round_ in state.rounds if round_ not in due)}
            if state.holder == self._writer:
                changes |= {"holder": "", "until_ms": 0}
            number = max(number, state.next_round)
            added = bool(dead) and len(changes["rounds"]) < MAX_ROUNDS
            if added:
                while not self._store.put_list(number, dead):
                    number += 1
                now_ms = self._now_ms()
                # What is put from then on has a key that no round has condemned.
                highest = max(state.epoch, *(epoch_of(key) or 0 for key in dead))
                new = Round(number, condemned_key(number), highest, now_ms, now_ms + self._grace_ms)
                changes |= {
                    "rounds": (*changes["rounds"], new), "next_round": number + 1, "epoch": highest + 1,
                }  # fmt: skip
            elif doubtful:
                changes["epoch"] = state.epoch + 1
            with suppress(BlobChanged):
                self._store.swap(found, **changes)
                if added:
                    done.round, done.not_before_ms = new.number, new.not_before_ms
                break
        for key in self._store.stale_lists():
            self._blobs.delete(key)

    def _dead(self, known: Mark, sizes: dict[str, int], waiting: dict[Round, tuple[str, ...]]) -> tuple[str, ...]:
        condemned = {key for keys in waiting.values() for key in keys}
        dead = [key for key in sizes if key not in known.live and key not in condemned]
        return tuple(dead[:MAX_KEYS])

    def _count(self, done: Collected, keys: tuple[str, ...], known: Mark, sizes: dict[str, int]) -> list[str]:
        """Which of the keys are dead and there; `done` is told."""
        there = [key for key in keys if key in sizes]
        dead = [key for key in there if key not in known.live]
        done.kept += len(there) - len(dead)
        done.deleted += len(dead)
        done.deleted_bytes += sum(sizes[key] for key in dead)
        return dead

    def _count_new(self, done: Collected, dead: tuple[str, ...], sizes: dict[str, int]) -> None:
        done.condemned = len(dead)
        done.condemned_bytes = sum(sizes[key] for key in dead)

    def _is_old(self, created_ms: int) -> bool:
        return created_ms + self._grace_ms <= self._now_ms()

    def _is_due(self, round_: Round) -> bool:
        return round_.not_before_ms <= self._now_ms()
