"""What an idle consumer blocks on: the wake tokens of the lanes that it reads (Q7)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.exceptions import RedisError, ResponseError

from headpond.connections import BLOCK_S, UNREACHABLE, RedisAddress, connect_blocking

logger = logging.getLogger(__name__)

INTERRUPT_S = 1.0


class Waiter:
    """One consumer's blocking connection. `wait` is called by one thread, `interrupt` by any."""

    def __init__(self, address: RedisAddress, client: redis.Redis, keys: Sequence[str]) -> None:
        """client: of the same server, for calls that answer at once. keys: wake lists, of lanes in any order."""
        self._address, self._client, self._keys = address, client, list(keys)
        self._redis = connect_blocking(address, connections=1)
        self._client_id: int | None = None
        self._waiting = False

    def watch(self, keys: Sequence[str]) -> None:
        """Block on these wake lists from the next wait on. Called by the thread that waits."""
        self._keys = list(keys)

    def wait(self, block_s: float, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Block until one of the lanes may be claimed from, at most block_s. Takes a wake token: claim next.

        unless: what makes a wait needless. Whoever makes it true and then interrupts ends this wait for sure.
        Raises RedisUnavailable.
        """
        self._waiting = True
        try:
            return False if unless() else self._block(block_s)
        finally:
            self._waiting = False

    def _block(self, block_s: float) -> bool:
        try:
            if self._client_id is None:
                self._client_id = int(self._redis.client_id())
            return self._pop(max(0.001, min(block_s, BLOCK_S)))
        except UNREACHABLE as error:
            self._client_id = None
            raise self._address.unavailable(error) from error
        except ResponseError as error:
            # UNBLOCKED: the server changed its role or moved the slot under a blocked call (Q15).
            logger.info("wait_ended keys=%s reason=%s", self._keys, error)
            return True

    def _pop(self, block_s: float) -> bool:
        client: Any = self._redis  # redis-py's own method has no annotations
        return client.execute_command("BLPOP", *self._keys, block_s) is not None

    def interrupt(self) -> None:
        """End a wait that runs now, if the server can be reached."""
        until = time.monotonic() + INTERRUPT_S
        # A wait that is only about to block cannot be ended yet: ask until it is, or is over.
        while self._waiting and time.monotonic() < until:
            try:
                if self._client_id is not None and self._client.client_unblock(self._client_id):
                    return
            except RedisError as error:
                logger.info("unblock_failed reason=%s", error)
                return
            time.sleep(0.002)

    def close(self) -> None:
        self._redis.close()
