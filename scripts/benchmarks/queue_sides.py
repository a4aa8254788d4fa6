"""Both brokers on one server: a worker process for each, and a broker in this process that sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from child import BenchmarkError, Child
from queue_actor import Side, declare_actor, make_broker, nobody

from headpond_workers.supervision.private_files import private_folder

ANSWER_TIMEOUT_S = 120.0


class WorkerProcess:
    """A queue_worker.py. A context manager, as Child is."""

    def __init__(
        self,
        side: Side,
        url: str,
        folder: Path,
        *,
        name: str = "worker",
        threads: int = 8,
        slots: int | None = None,
        lease_s: float = 10.0,
    ) -> None:
        setup = {"side": side.value, "url": url, "threads": threads, "slots": slots, "lease_s": lease_s}
        self.child = Child("queue_worker.py", setup, log=private_folder(folder) / f"{name}-{side.value}.log")

    def __enter__(self) -> WorkerProcess:
        self.child.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self.child.__exit__(*how)

    def start(self) -> None:
        """Begin to take jobs."""
        self._ask("start")

    def stop(self) -> None:
        """Take no more, and return once all that ran is acknowledged."""
        self._ask("stop")

    def began(self, count: int) -> list[tuple[int, int]]:
        """(job, ns of CLOCK_MONOTONIC) of the next `count` jobs to begin. Raises BenchmarkError."""
        return [(job, at_ns) for job, at_ns in self._ask("began", count=count)["jobs"]]

    def ended(self, count: int) -> list[tuple[int, int]]:
        return [(job, at_ns) for job, at_ns in self._ask("ended", count=count)["jobs"]]

    def _ask(self, do: str, **more: int) -> dict[str, Any]:
        return self.child.ask({"do": do, **more}, timeout_s=ANSWER_TIMEOUT_S)


class Sender:
    """The producer of one side."""

    def __init__(self, stack: ExitStack, side: Side, url: str) -> None:
        self.broker = make_broker(side, url)
        stack.callback(self.broker.close)
        self.actor: Any = declare_actor(self.broker, nobody, nobody)

    def send(self, job: int, hold_s: float = 0.0) -> None:
        self.actor.send(job, hold_s)


@contextmanager
def senders(url: str) -> Iterator[dict[Side, Sender]]:
    with ExitStack() as stack:
        yield {side: Sender(stack, side, url) for side in Side}


def times_of(sent: list[int], told: list[tuple[int, int]]) -> dict[int, int]:
    """ns by job. Raises BenchmarkError if the jobs that were told of are not those that were sent, once each."""
    times = dict(told)
    if len(told) != len(sent) or times.keys() != set(sent):
        raise BenchmarkError("The jobs that ran are not those that were sent; nothing was measured.")
    return times
