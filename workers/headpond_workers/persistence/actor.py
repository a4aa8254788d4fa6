"""The persistence actor: `persist(model)` on the queue `persistence`, one message a model and second (S5)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import dramatiq

from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.errors import HeadpondError
from headpond.keys import PERSISTENCE_QUEUE
from headpond.queue import Server
from headpond_workers.persistence.blobs import Blobs
from headpond_workers.persistence.gate import open_queue
from headpond_workers.persistence.journal import Journal, drain
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.snapshot_thread import SnapshotThread
from headpond_workers.persistence.snapshots import is_due, make_snapshot

logger = logging.getLogger(__name__)

PERSIST = "persist"
LEASE_S = 2.0
RETENTION_S = 60.0
"""How long a message of one second keeps others of that second from being enqueued."""


class Persistence:
    """Commits journals. One a process; several processes share the work, and the head decides between them."""

    def __init__(self, address: RedisAddress, blobs: Blobs, *, writer: str, model_server: Server) -> None:
        """model_server: for the queues of models; the broker has a connection of its own. `snapshots` is to be
        started."""
        self._blobs, self._writer, self._server = blobs, writer, model_server
        self._busy: dict[str, threading.Lock] = {}
        self._journals: dict[str, Journal] = {}
        self.snapshots = SnapshotThread(self.snapshot)
        self.broker = HeadpondBroker(Server(address), middleware=[], slots=2, lease_s=LEASE_S)
        dramatiq.actor(actor_name=PERSIST, queue_name=PERSISTENCE_QUEUE, broker=self.broker)(self.persist)

    def models(self) -> list[str]:
        """Models whose queues are journaled. Raises RedisUnavailable."""
        return sorted(name for name, row in self._server.models().items() if row.storage)

    def tick(self) -> None:
        """Once a second: let time pass in every queue, open those that wait, and call for what is to commit.

        One model's trouble is no other's: it is logged, and tried again a second later.
        """
        seconds, _ = self._server.read("TIME")
        for model in self.models():
            self._guarded(model, partial(self._tick, model, int(seconds)))

    def _tick(self, model: str, second: int) -> None:
        queue = self._server.queue(model, storage=True)
        queue.tick()
        if open_queue(queue, StateStore(self._blobs, model), writer=self._writer) and (
            queue.journal_length() or queue.leased()
        ):
            # The id is the model's and the second's, so that several persisters enqueue one message.
            message: dramatiq.Message[None] = dramatiq.Message(
                queue_name=PERSISTENCE_QUEUE, actor_name=PERSIST, args=(model,), kwargs={}, options={},
                message_id=f"{model}-{second}",
            )  # fmt: skip
            self.broker.enqueue(message)

    def persist(self, model: str) -> None:
        """Commit all that one model's journal holds now."""
        self._guarded(model, partial(self.drain, model))

    def drain(self, model: str) -> None:
        """Raises CommitLost, StorageUnavailable, RedisUnavailable."""
        with self._busy.setdefault(model, threading.Lock()):
            journal = self._journals.get(model)
            if journal is None:
                journal = self._journals[model] = Journal(self._server.queue(model, storage=True))
            store = StateStore(self._blobs, model)
            while drain(journal, store, writer=self._writer):
                pass
        if journal.at is not None and is_due(journal.at.head):
            self.snapshots.ask(model)

    def snapshot(self, model: str) -> None:
        """Make a snapshot of one model's state, if that is due. Raises CommitLost, StorageUnavailable, BlobCorrupt."""
        store = StateStore(self._blobs, model)
        at = store.read_head()
        if at is not None and is_due(at.head):
            make_snapshot(store, at, writer=self._writer)

    def _guarded(self, model: str, work: Callable[[], None]) -> None:
        try:
            work()
        except HeadpondError as error:
            # The journal still holds what was not committed, and the next second calls again.
            logger.warning("persist_delayed model=%s error=%s", model, error)
