"""The persistence actor: `persist(model)` on the queue `persistence`, one message a model and second (S5)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import dramatiq

from headpond import upkeep
from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.errors import HeadpondError, StorageUnavailable
from headpond.keys import PERSISTENCE_QUEUE
from headpond.queue import Server
from headpond_workers.persistence.gate import open_queue
from headpond_workers.persistence.housekeeping import Housekeeping
from headpond_workers.persistence.journal import Journal, check_spool, drain
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.snapshot_thread import SnapshotThread
from headpond_workers.persistence.snapshots import is_due
from headpond_workers.persistence.spool import Spool
from headpond_workers.persistence.spooling import SpoolPolicy, replay, spool_outage
from headpond_workers.storage.blobs import Blobs

logger = logging.getLogger(__name__)

PERSIST = "persist"
LEASE_S = 2.0
RETENTION_S = 60.0
"""How long a message of one second keeps others of that second from being enqueued."""


class Persistence:
    """Commits journals. One a process; several processes share the work, and the head decides between them."""

    def __init__(
        self,
        address: RedisAddress,
        blobs: Blobs,
        *,
        writer: str,
        model_server: Server,
        spools: SpoolPolicy,
        sync: Callable[[], None] | None = None,
        history_s: float = 86400.0,
        forget: Callable[[str], object] = lambda model: None,
        follow: Callable[[str, str], object] = lambda model, marks: None,
    ) -> None:
        """model_server: for the queues of models; the broker has a connection of its own. sync: see `journal.drain`.
        history_s, forget, follow: see Housekeeping. `snapshots` is to be started."""
        self._sync, self._policy = sync, spools
        self._spools: dict[str, Spool] = {}
        self._replays: dict[str, threading.Thread] = {}
        self._blobs, self._writer, self._server = blobs, writer, model_server
        self._busy: dict[str, threading.Lock] = {}
        self._journals: dict[str, Journal] = {}
        self._housekeeping = Housekeeping(
            model_server, blobs, writer=writer, history_s=history_s, forget=forget, follow=follow
        )
        self.snapshots = SnapshotThread(self._housekeeping.renew)
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
        if self._spool(model).has_frames:
            # Only this host can commit them. Nothing else may be, and no history be looked at, before that.
            self._replay_apart(model)
            return
        check_spool(queue)
        if not open_queue(queue, StateStore(self._blobs, model), writer=self._writer):
            return
        if self._housekeeping.is_wanted(queue):
            self.snapshots.ask(model)
        if queue.journal_length() or queue.leased() or queue.storage_trouble():
            # The id is the model's and the second's, so that several persisters enqueue one message.
            message: dramatiq.Message[None] = dramatiq.Message(
                queue_name=PERSISTENCE_QUEUE, actor_name=PERSIST, args=(model,), kwargs={}, options={},
                message_id=f"{model}-{second}",
            )  # fmt: skip
            self.broker.enqueue(message)

    def _replay_apart(self, model: str) -> None:
        """In a thread of its own: a spool may be long, and other models' time has to pass."""
        running = self._replays.get(model)
        if running is None or not running.is_alive():
            self._replays[model] = threading.Thread(target=self.persist, args=(model,), name=f"replay {model}")
            self._replays[model].start()

    def _spool(self, model: str) -> Spool:
        return self._spools.setdefault(model, Spool(self._policy.root, model))

    def persist(self, model: str) -> None:
        """Commit all that one model's journal holds now."""
        self._guarded(model, partial(self.drain, model))

    def drain(self, model: str) -> None:
        """Raises CommitLost, SpoolError, StorageUnavailable, RedisUnavailable."""
        with self._busy.setdefault(model, threading.Lock()):
            queue = self._server.queue(model, storage=True)
            journal = self._journals.get(model)
            if journal is None:
                journal = self._journals[model] = Journal(queue)
            store, spool = StateStore(self._blobs, model), self._spool(model)
            began_ms = queue.server.now_ms()
            try:
                if spool.has_frames:
                    replay(queue, spool, store, writer=self._writer, sync=self._sync)
                while drain(journal, store, writer=self._writer, sync=self._sync):
                    pass
            except StorageUnavailable:
                spool_outage(journal, spool, self._policy, writer=self._writer, since_ms=began_ms)
                raise
            if queue.storage_trouble() is not None:
                queue.run(upkeep.storage_back())
        if journal.at is not None and is_due(journal.at.head):
            self.snapshots.ask(model)

    def _guarded(self, model: str, work: Callable[[], None]) -> None:
        try:
            work()
        except HeadpondError as error:
            # The journal still holds what was not committed, and the next second calls again.
            logger.warning("persist_delayed model=%s error=%s", model, error)
