"""Servers that do not answer, or not as they must."""

from __future__ import annotations

from typing import ClassVar

from headpond.errors.base import HeadpondError


class ServiceUnavailable(HeadpondError):
    """A server that headpond needs does not answer.

    url: what was tried, without its password. configured_in: where that address came from.
    """

    retry = True
    service: ClassVar[str] = "a server"

    def __init__(self, url: str, *, configured_in: str, reason: str) -> None:
        super().__init__(
            f"Cannot reach {self.service} at {url} ({reason}). The address comes from {configured_in}. "
            "Start it there, or point headpond elsewhere."
        )
        self.url = url
        self.configured_in = configured_in
        self.reason = reason


class RedisUnavailable(ServiceUnavailable):
    service = "Redis"


class QueueMending(RedisUnavailable):
    """What storage holds of a queue is being put back into Redis. Until that is done nothing of it is leased and no job
    ends; whoever asks for that asks again, as after an outage.

    state: 'restoring' or 'reconciling'; 'closed' where it is not known yet whether there is anything to put back.
    """

    _WHAT: ClassVar[dict[str, str]] = {
        "closed": "is closed until it is known what storage has of it; headpond status says why. A Redis that lost its "
        "data gets it back by: headpond restore",
        "restoring": "is being restored from storage. It opens when that command has ended: headpond restore",
        "reconciling": "waits for what storage has and Redis forgot when its server went back in time. The persister "
        "puts that back, which takes a second or two if storage answers: headpond logs persister",
    }

    def __init__(self, queue: str, *, state: str, url: str, configured_in: str) -> None:
        HeadpondError.__init__(self, f"The queue '{queue}' {self._WHAT.get(state, state)}")
        self.queue, self.state = queue, state
        self.url, self.configured_in, self.reason = url, configured_in, state


class StorageUnavailable(ServiceUnavailable):
    service = "S3 storage"


class QueueError(HeadpondError):
    """The server refused a command: a defect, or a server that is not as headpond needs it."""


class ServerWentBack(QueueError):
    """Redis went back in time amid several calls that belong together, or another has made them all. Begin anew."""

    retry = True

    def __init__(self, script: str) -> None:
        super().__init__(
            f"{script} was refused: the server went back in time since this began, or another process has done it all. "
            "Try again"
        )
