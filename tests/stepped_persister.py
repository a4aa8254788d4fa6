"""A persister's work on one model, also in a process that gets a signal at a chosen step: SIGKILL, or SIGSTOP.

`python -m stepped_persister JSON`; see `Order`. It says `drained` or `failed: ...` each time
that it looks.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headpond.connections import RedisAddress
from headpond.errors import HeadpondError
from headpond.queue import JobQueue, Server
from headpond_workers.persistence.actor import Persistence
from headpond_workers.persistence.journal import Journal
from headpond_workers.persistence.segments import StateStore
from headpond_workers.persistence.spool import Spool
from headpond_workers.persistence.spooling import SpoolPolicy
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.s3_client import S3Timeouts
from headpond_workers.storage.settings import StorageAddress


@dataclass(frozen=True)
class Order:
    """step: one of STEPS, '' for none. nth: which time that it is reached. signum: what the process gets then."""

    redis: str
    s3: tuple[str, str, str, str, str]
    root: str
    model: str
    writer: str
    after_entries: int = 3
    max_bytes: int = 1_000_000
    times: int = 1
    step: str = ""
    nth: int = 1
    signum: int = field(default=signal.SIGKILL)

    def argument(self) -> str:
        return json.dumps(asdict(self))


class _Reached:
    def __init__(self, order: Order) -> None:
        self.left, self.signum = order.nth, order.signum

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.signum)


Install = Callable[[Callable[[], None]], None]


def _always(*_: Any, **__: Any) -> bool:
    return True


def _wrap(owner: Any, name: str, *, before: bool, when: Callable[..., bool] = _always) -> Install:
    def install(reached: Callable[[], None]) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before and when(*args, **kwargs):
                reached()
            value = real(*args, **kwargs)
            if not before and when(*args, **kwargs):
                reached()
            return value

        setattr(owner, name, wrapped)

    return install


def _torn(reached: Callable[[], None]) -> None:
    real = Spool.append

    def append(self: Spool, frames: Any, *, last: Any) -> None:
        whole = b"".join(frames)
        with self.path.open("ab") as file:
            file.write(whole[: len(whole) // 2])
        reached()
        real(self, frames, last=last)

    Spool.append = append  # type: ignore[method-assign]


def _script(name: str, *first: str) -> Callable[..., bool]:
    return lambda _, operation: operation.script == name and tuple(operation.args[: len(first)]) == first


SPOOLING = {
    "before a frame is written": _wrap(Spool, "append", before=True),
    "amid the write of a frame": _torn,
    "once a frame is synced": _wrap(Spool, "append", before=False),
    "once entries have left the journal": _wrap(JobQueue, "run", before=False, when=_script("spool", "take")),
}
REPLAYING = {
    "before a commit": _wrap(StateStore, "commit", before=True),
    "between segment and head": _wrap(StateStore, "swap", before=True),
    "between head and trim": _wrap(StateStore, "commit", before=False),
    "after a trim": _wrap(JobQueue, "run", before=False, when=_script("trim")),
    "before it is said that all is replayed": _wrap(JobQueue, "run", before=True, when=_script("spool", "replayed")),
    "once it is said that all is replayed": _wrap(JobQueue, "run", before=False, when=_script("spool", "replayed")),
    "once the file is removed": _wrap(Spool, "clear", before=False),
}
STEPS = {**SPOOLING, **REPLAYING, "once a batch is read": _wrap(Journal, "read_batch", before=False)}


def drained(order: Order) -> Iterator[str]:
    """Drain as often as is ordered; what came of each time."""
    address = RedisAddress(order.redis, "the test")
    endpoint, bucket, region, access, secret = order.s3
    blobs = S3Blobs(
        StorageAddress(endpoint, bucket, region, access, secret, configured_in="the test"),
        timeouts=S3Timeouts(connect_s=1.0, unreachable_s=0.2),
    )
    policy = SpoolPolicy(Path(order.root), order.after_entries, order.max_bytes, "the test's host")
    server = Server(address)
    persistence = Persistence(address, blobs, writer=order.writer, model_server=server, spools=policy)
    for _ in range(order.times):
        try:
            persistence.drain(order.model)
        except HeadpondError as error:
            yield f"failed: {type(error).__name__}: {error}"
        else:
            yield "drained"
    persistence.broker.close()
    server.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    ordered = Order(**json.loads(sys.argv[1]))
    STEPS[ordered.step](_Reached(ordered))
    for line in drained(ordered):
        print(line, flush=True)
