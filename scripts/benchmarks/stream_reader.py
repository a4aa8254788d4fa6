"""A process that reads streams, a thread each, and says when it had each token.

Set-up: {"url"}. Requests:

    {"do": "open", "names", "raw"}   begin to read: jobs with Client, or streams with XREAD; the last were closed
    {"do": "close", "entries"}       waits until each stream gave so many entries, and ended where it is a job's:
                                     {"read": for each name, [(offset, ns of CLOCK_MONOTONIC) of each entry, ...]}
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from child import Answer, BenchmarkError, Serving, serve

from headpond import Client
from headpond.connections import RedisAddress, connect_blocking
from headpond.replies import parse_read
from headpond.wire import unpack_tokens

BLOCK_MS = 2500
CLOSE_TIMEOUT_S = 30.0

Times = list[tuple[int, int]]


class _Reader(threading.Thread):
    """times: (offset, ns) of each entry so far."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"reader-{name}", daemon=True)
        self.stream = name
        self.times: Times = []


class JobReader(_Reader):
    def __init__(self, client: Client, job: str) -> None:
        super().__init__(job)
        self._client = client

    def run(self) -> None:
        for chunk in self._client.job(self.stream).stream():
            self.times.append((chunk.offset, time.monotonic_ns()))


class RawReader(_Reader):
    """Ends when it is told to, after its next wait at the latest."""

    def __init__(self, redis: Any, name: str) -> None:
        super().__init__(name)
        self._redis = redis
        self.enough = threading.Event()

    def run(self) -> None:
        last = "0-0"
        while not self.enough.is_set():
            found = self._redis.execute_command("XREAD", "BLOCK", BLOCK_MS, "COUNT", 512, "STREAMS", self.stream, last)
            for entry_id, fields in parse_read(found):
                last = entry_id
                run = unpack_tokens(fields[b"t"])
                self.times.append((run.offset, time.monotonic_ns()))


class Readers:
    def __init__(self, client: Client, redis: Any) -> None:
        self._client, self._redis = client, redis
        self._open: list[_Reader] = []

    def serve(self, request: dict[str, Any]) -> Answer:
        if request["do"] == "open":
            make = (lambda n: RawReader(self._redis, n)) if request["raw"] else (lambda n: JobReader(self._client, n))
            self._open = [make(name) for name in request["names"]]
            for reader in self._open:
                reader.start()
            return {}
        return {"read": [self._closed(reader, request["entries"]) for reader in self._open]}

    def _closed(self, reader: _Reader, entries: int) -> Times:
        until = time.monotonic() + CLOSE_TIMEOUT_S
        while isinstance(reader, RawReader) and len(reader.times) < entries and time.monotonic() < until:
            time.sleep(0.01)
        if isinstance(reader, RawReader):
            reader.enough.set()
        reader.join(max(0.0, until - time.monotonic()))
        if reader.is_alive() or len(reader.times) != entries:
            raise BenchmarkError(f"{reader.stream} gave {len(reader.times)} entries, not {entries}")
        return reader.times


@contextmanager
def readers(setup: dict[str, Any]) -> Iterator[Serving]:
    with Client(setup["url"]) as client, closing(connect_blocking(RedisAddress(setup["url"], "the benchmark"))) as raw:
        yield Readers(client, raw).serve


if __name__ == "__main__":
    serve(readers)
