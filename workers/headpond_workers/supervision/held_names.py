"""The names that this deployment holds on its Redis: looked at before a change, taken with it, given up afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from headpond.connections import redis_of
from headpond.errors import ModelFileError
from headpond.models import ModelRow
from headpond.names import Hold
from headpond.queue import Server
from headpond.settings import Settings
from headpond_workers.naming.identity import Identity
from headpond_workers.naming.model_rows import holder_of, row_of

ALWAYS_STORED = True
"""`headpond up` runs a persister, and embeds storage where the configuration names none."""


class HeldNames:
    """Of one configuration. progress: takes one line for people."""

    def __init__(self, settings: Settings, identity: Identity, *, progress: Callable[[str], None]) -> None:
        self._settings, self._identity, self._progress = settings, identity, progress
        self._holder = holder_of(settings, identity)
        self._rows: dict[str, ModelRow] = {}

    def look(self, models: Collection[str]) -> None:
        """Raises NameTaken if others mean other models by one of these names; RedisUnavailable."""
        self._hold(models, Hold.LOOK)

    def take(self, models: Collection[str]) -> None:
        """Hold all these names, or none. Raises NameTaken, RedisUnavailable."""
        self._hold(models, Hold.TAKE)

    def release(self, models: Collection[str]) -> None:
        """Give up these names. Raises RedisUnavailable."""
        with self._server() as server:
            server.release(self._identity.id, sorted(models))

    def release_others(self, keep: Collection[str]) -> None:
        """Give up every name but those of `keep`. Raises RedisUnavailable."""
        with self._server() as server:
            held = [
                name
                for name, row in server.models().items()
                if name not in keep and any(holder.deployment == self._identity.id for holder in row.holders)
            ]
            server.release(self._identity.id, sorted(held))

    def _hold(self, models: Collection[str], how: Hold) -> None:
        rows = {name: row for name in models if (row := self._row(name)) is not None}
        if rows:
            with self._server() as server:
                server.hold(self._holder, rows, where=str(self._settings.file), how=how)

    def _row(self, model: str) -> ModelRow | None:
        """None for weights that cannot be read: the model's worker says why, and keeps no other from starting."""
        if model not in self._rows:
            try:
                self._rows[model] = row_of(self._settings.model(model), storage=ALWAYS_STORED)
            except ModelFileError as error:
                self._progress(f"the name {model} is not looked at: {error}")
                return None
        return self._rows[model]

    @contextmanager
    def _server(self) -> Iterator[Server]:
        server = Server(redis_of(self._settings))
        try:
            yield server
        finally:
            server.close()
