"""The name of one worker's model: taken or kept when it starts, looked after while it serves, given up at the end."""

from __future__ import annotations

import logging
from enum import Enum

from headpond.errors import ConfigError, HeadpondError, ModelFileError, NameTaken
from headpond.models import ModelRow
from headpond.names import Hold
from headpond.queue import JobQueue, Server
from headpond.settings import RUN_FILE, Settings
from headpond.tables import ModelTable
from headpond_workers.naming.identity import Identity
from headpond_workers.naming.model_rows import holder_of, row_of, unread_row_of

logger = logging.getLogger(__name__)


class Started(Enum):
    """Who started a worker, and so who takes the name of its model and gives it up."""

    BY_SUPERVISOR = "by supervisor"
    BY_HAND = "by hand"


class NameKeeper:
    """For one process. storage: whether the queue is journaled."""

    def __init__(
        self, server: Server, settings: Settings, model: str, *, identity: Identity, started: Started, storage: bool
    ) -> None:
        self._server, self._model, self._storage = server, model, storage
        self._state_folder, self._where = settings.state_folder, str(settings.file)
        self._deployment, self._started = identity.id, started
        self._holder = holder_of(settings, identity)
        self._table = settings.model(model)
        self._row: ModelRow | None = None
        """Made when it is first needed: weights may have to be read for it."""

    def begin(self) -> None:
        """Hold the name, before the first word to its queue. Raises NameTaken, RedisUnavailable."""
        # A worker that supervisord starts again may read a configuration that nobody has applied yet: only those who
        # apply one, or start a worker by hand, may change what the name means.
        self._hold(Hold.TAKE if self._started is Started.BY_HAND else Hold.KEEP)

    def lost(self) -> NameTaken | None:
        """Why its deployment no longer holds the name; None while it does.

        It takes the name again where nobody else did: a server may have lost it.
        """
        try:
            self._hold(Hold.KEEP)
        except NameTaken as error:
            return error
        except HeadpondError as error:
            logger.warning("name_not_looked_at model=%s error=%s", self._model, error)
        return None

    def mean(self, table: ModelTable) -> None:
        """From now on, what the name means is this."""
        self._table, self._row = table, None

    def leave(self, queue: JobQueue) -> None:
        """Once its own row is gone: the last worker of a deployment that nobody runs with `headpond up` frees the name.

        Raises RedisUnavailable.
        """
        if self._started is Started.BY_SUPERVISOR or (self._state_folder / RUN_FILE).exists():
            return
        if not any(row.deployment == self._deployment for row in queue.workers()):
            self._server.release(self._deployment, [self._model])

    def _hold(self, how: Hold) -> None:
        row = self._row = self._row or self._row_of(self._table)
        self._server.hold(self._holder, {self._model: row}, where=self._where, how=how)

    def _row_of(self, table: ModelTable) -> ModelRow:
        try:
            return row_of(table, storage=self._storage)
        except (ModelFileError, ConfigError) as error:
            # Loading the model tells it to people.
            logger.warning("spec_unknown model=%s error=%s", self._model, error)
            return unread_row_of(table, storage=self._storage)
