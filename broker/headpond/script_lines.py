"""Connections kept open for calls of scripts.

redis-py's client takes a connection out of its pool, looks whether it is still good, and gives it back, for each
command: as much work as the rest of a call. Here a call takes whichever connection is free, finds out by using it
whether it is good, and asks once more on a new one if it is not. Every script may be repeated, so that is safe.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Any

import redis
from redis.exceptions import ResponseError

RETRY_AFTER_S = 0.02
_BROKEN = (redis.ConnectionError, redis.TimeoutError, OSError)


class ScriptLines:
    """Thread-safe. One connection for each call that is under way; they are those of a client's pool, with its
    settings and its greeting."""

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._free: deque[Any] = deque()
        self._pid = os.getpid()
        self._forked = threading.Lock()

    def call(self, *command: Any) -> Any:
        """Send one command and return its reply. Asked again once if the connection breaks or the server is silent.

        Raises redis.ConnectionError, redis.TimeoutError or OSError if both fail, ResponseError for a refusal.
        """
        try:
            return self._call(command)
        except _BROKEN:
            # What else is free has most likely lost the same server.
            self.close()
            time.sleep(RETRY_AFTER_S)
        return self._call(command)

    def _call(self, command: tuple[Any, ...]) -> Any:
        if self._pid != os.getpid():
            self._leave_to_parent()
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._pool.make_connection()
        try:
            connection.send_command(*command)
            reply = connection.read_response()
        except ResponseError:
            self._free.append(connection)
            raise
        except BaseException:
            # The reply may still be on its way: whoever used this connection next would take it for his own. It opens
            # again when it is used again; a new one in its place would count against the pool's bound.
            connection.disconnect()
            self._free.append(connection)
            raise
        self._free.append(connection)
        return reply

    def _leave_to_parent(self) -> None:
        """After a fork the sockets belong to both processes: the child opens its own, and closes none of them."""
        with self._forked:
            if self._pid != os.getpid():
                self._free = deque()
                self._pid = os.getpid()

    def close(self) -> None:
        """Close what is free; it opens again when it is used again."""
        for _ in range(len(self._free)):
            try:
                connection = self._free.popleft()
            except IndexError:
                return
            connection.disconnect()
            self._free.append(connection)
