"""The operator's side, for programs: what `headpond dead` and `headpond fsck` do."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from headpond.connections import find_redis
from headpond.errors import UnknownModel
from headpond.models import ModelRow
from headpond.queue import JobQueue, Server

if TYPE_CHECKING:
    from headpond.dead import DeadJobs


class Operator:
    """A connection of one operator. Thread-safe; opens sockets at first use.

    url: as for `headpond.Client`. Raises ConfigError if none is given and nothing else says.
    """

    def __init__(self, url: str | None = None) -> None:
        self._server = Server(find_redis(url))

    def models(self) -> list[str]:
        """Names of all models that are configured on this server. Raises RedisUnavailable."""
        return sorted(self._server.models())

    def queue(self, model: str) -> JobQueue:
        """The queue itself. Raises UnknownModel, RedisUnavailable."""
        return self._server.queue(model, storage=self._row(model).storage)

    @property
    def server(self) -> Server:
        """The connection itself."""
        return self._server

    def has_storage(self, model: str) -> bool:
        """Whether the model's queue is journaled. Raises UnknownModel, RedisUnavailable."""
        return self._row(model).storage

    def dead(self, model: str) -> DeadJobs:
        """The model's quarantined jobs: list, show, retry, drop. Raises UnknownModel, RedisUnavailable."""
        # A producer's commands import this module too, and are not to pay for what bundles need.
        from headpond.dead import DeadJobs

        return DeadJobs(self.queue(model), max_queued=self._row(model).max_queued)

    def _row(self, model: str) -> ModelRow:
        # Asking for an unknown name must not make a queue of it.
        known = self._server.models()
        if model not in known:
            raise UnknownModel(model[:100], known)
        return known[model]

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
