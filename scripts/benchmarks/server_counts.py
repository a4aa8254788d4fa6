"""What a server tells: calls of scripts, commands of its clients, memory."""

from __future__ import annotations

import time
from typing import Any, cast

import redis
from child import BenchmarkError
from ulid import ULID

SETTLE_TIMEOUT_S = 10.0
_SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval")


def script_calls(client: redis.Redis) -> int:
    """Calls of scripts since the server's start. What a script calls in its turn is not among them."""
    found = client.info("commandstats")
    return sum(int(found[name]["calls"]) for name in _SCRIPTS if name in found)


class CommandCount:
    """Counts what clients send, from its making until `close`, with MONITOR: INFO counts the commands that a script
    calls in its turn as well."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        # redis-py gives this no annotations.
        self._monitor: Any = cast("Any", client).monitor()
        self._monitor.__enter__()
        # The monitor took a connection of its own: what this client opens in its place is not to be counted.
        self._until_mark()
        self._began = time.monotonic()

    def close(self) -> tuple[int, float]:
        """The commands so far, and the seconds."""
        seconds = time.monotonic() - self._began
        count = self._until_mark()
        self._monitor.__exit__(None, None, None)
        return count, seconds

    def _until_mark(self) -> int:
        """Commands of clients until now."""
        mark = f"counted-{ULID()}"
        self._client.echo(mark)
        count = 0
        while mark not in (seen := self._monitor.next_command())["command"]:
            count += seen["client_type"] != "lua"
        return count


def used_memory(client: redis.Redis) -> int:
    """Bytes, once the server has written out what it buffers for its append-only file."""
    until = time.monotonic() + SETTLE_TIMEOUT_S
    while int(client.info("persistence")["aof_buffer_length"]) > 0:
        if time.monotonic() >= until:
            raise BenchmarkError(f"The append-only file was not written within {SETTLE_TIMEOUT_S:g} s.")
    return int(client.info("memory")["used_memory"])


def leave_append_only_file(client: redis.Redis) -> None:
    """Keep the server from rewriting its append-only file: a fork amid a measurement is not what is measured."""
    client.config_set("auto-aof-rewrite-percentage", 0)
