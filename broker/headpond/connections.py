"""Connections to Redis or Valkey: where the server is, how long to wait for it, and `hello` on each connection.

A server that comes back may have lost its last moments. So each new connection says `hello` for the queues of
its owner before its first command; there is no moment in which an old incarnation's id could be written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.driver_info import DriverInfo
from redis.retry import Retry

from headpond.errors import ConfigError, HeadpondError, JobGone, QueueError, QueueMending, RedisUnavailable
from headpond.kept_settings import applied_settings
from headpond.keys import queue_keys
from headpond.scripts import WAITS, load_script
from headpond.settings import CONFIG_NAME, RUN_FILE, Settings, find_config, load_settings

UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, OSError)
"""What redis-py raises when the server does not answer."""
CONNECT_TIMEOUT_S = 1.0
REPLY_TIMEOUT_S = 2.2
"""Asked twice: a server that accepts and says nothing is given up within 5 s."""
MAX_CONNECTIONS = 1 << 16
"""Of one client. It opens one for each thread that is amid a call."""
BLOCK_S = 2.5
"""The longest that a call blocks on the server before it looks around."""


_DRIVER = DriverInfo()
"""Made once: redis-py otherwise reads its own package's metadata for each connection, about 1 ms of processor time."""

OUTAGE_S = 60.0
"""How long whoever waits for a job bears a server that is away, once it has been there."""


@dataclass(slots=True)
class Patience:
    """Bears an outage of the server for OUTAGE_S. For one waiting call."""

    _since: float | None = None

    def answered(self) -> None:
        self._since = None

    def delay_s(self, error: RedisUnavailable) -> float:
        """How long to wait before the next try. Raises the error once the outage has lasted too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= OUTAGE_S:
            raise error
        return 0.05 if now - self._since < 1 else 0.5


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """url: with its password; never printed. configured_in: where it came from, for errors."""

    url: str = field(repr=False)
    configured_in: str

    @property
    def shown(self) -> str:
        """The url without user and password."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))

    def unavailable(self, error: Exception) -> RedisUnavailable:
        return RedisUnavailable(self.shown, configured_in=self.configured_in, reason=str(error) or type(error).__name__)

    def refused(self, script: str, queue: str, error: Exception) -> HeadpondError:
        """What an error reply of a script means."""
        said = str(error)
        if said.startswith(WAITS):
            state = said.removeprefix(WAITS)
            return QueueMending(queue, state=state, url=self.shown, configured_in=self.configured_in)
        return QueueError(f"{script} on queue '{queue}' was refused: {said}")

    def absence(self, job_id: str, queue: str, state: bytes | None) -> JobGone | QueueMending:
        """What it means that a queue in this state does not hold a job. One that is not open may get it back from
        storage."""
        if state in (None, b"open"):
            return JobGone(job_id)
        return QueueMending(queue, state=state.decode(), url=self.shown, configured_in=self.configured_in)


def find_redis(url: str | None = None, *, start: Path | None = None) -> RedisAddress:
    """The server to use: the argument, HEADPOND_REDIS_URL, `[redis] url` of the nearest headpond.toml with its layers,
    or the deployment that `headpond up` runs beside that file. Raises ConfigError if none says.
    """
    if url is not None:
        return RedisAddress(checked_url(url, "the url argument"), "the url argument")
    if from_environment := os.environ.get("HEADPOND_REDIS_URL"):
        return RedisAddress(checked_url(from_environment, "HEADPOND_REDIS_URL"), "HEADPOND_REDIS_URL")
    file = find_config(start)
    if file is None:
        raise ConfigError(
            f"no Redis is configured: there is no {CONFIG_NAME} here or in a folder above. Give a url, set "
            "HEADPOND_REDIS_URL, or work in a folder with one",
            where=str(start or Path.cwd()),
        )
    try:
        # Who asks only for the server has to do with no model's table.
        settings = load_settings(file, environment=os.environ, needed=())
    except ConfigError:
        # Amid an edit of the file its deployment goes on, and so do those who use it.
        applied = applied_settings(file)
        if applied is None or not (applied.redis.url or (applied.state_folder / RUN_FILE).is_file()):
            raise
        settings = applied
    return redis_of(settings)


def redis_of(settings: Settings, *, learn: Callable[[str], object] | None = None) -> RedisAddress:
    """The server of a configuration: `[redis] url`, else the one that runs beside it. learn: told of the password."""
    where = f"{settings.file or CONFIG_NAME} [redis] url"
    if settings.redis.url is not None:
        url = checked_url(settings.redis.url, where)
        if settings.redis.password is not None:
            password = settings.redis.password.resolve(where=f"{where[:-4]} password", learn=learn)
            url = _with_password(url, password)
        return RedisAddress(url, where)
    run_file = settings.state_folder / RUN_FILE
    try:
        url = json.loads(run_file.read_text())["redis_url"]
    except FileNotFoundError:
        raise ConfigError(
            "names no [redis] url, and no deployment runs beside it. Start it there with: headpond up",
            where=str(settings.file or CONFIG_NAME),
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cannot be used: {error!r}. Restart with: headpond down; headpond up", where=str(run_file)
        ) from error
    address = RedisAddress(checked_url(url, str(run_file)), str(run_file))
    if learn is not None:
        learn(unquote(urlsplit(address.url).password or ""))
    return address


def checked_url(url: object, where: str) -> str:
    """url, if it can be one of a Redis. Raises ConfigError, without repeating it."""
    if not isinstance(url, str) or not url.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigError("a Redis url begins with redis://, rediss:// or unix://", where=where)
    try:
        _ = urlsplit(url).port
    except ValueError:
        # What is said of it would quote the url, and that may hold a password.
        raise ConfigError(
            "host or port of the Redis url cannot be read; in a password, write / as %2F and # as %23", where=where
        ) from None
    return url


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    userinfo, _, host = parts.netloc.rpartition("@")
    user = userinfo.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


def server_id(info: Mapping[str, object]) -> str:
    """What names one life of one server: its run id and replication id, of INFO's sections of these names."""
    return f"{info.get('run_id', '')}:{info.get('master_replid', '')}"


@lru_cache(maxsize=1024)
def script_key(queue: str) -> bytes:
    """The one key that a script is given: it names the queue, and all other keys derive from it. Bytes, and kept, for
    it is sent with every call."""
    return queue_keys(queue).named("meta").encode()


@dataclass(slots=True)
class Greeter:
    """Says hello for the queues of one owner. storage: whether the deployment has storage, for each queue."""

    queues: dict[str, bool] = field(default_factory=dict)
    clock: Callable[[], int] | None = None

    def _calls(self, info: bytes) -> list[tuple[Any, ...]]:
        lines = (line.partition(":") for line in info.decode().splitlines())
        who = server_id({name: value for name, _, value in lines})
        source = load_script("hello").source
        now = str(self.clock()) if self.clock else ""
        return [
            ("EVAL", source, 1, script_key(queue), now, who, "1" if storage else "")
            for queue, storage in list(self.queues.items())
        ]

    def meet(self, connection: Any) -> None:
        """redis-py's `redis_connect_func`."""
        connection.on_connect()
        if not self.queues:
            return
        info = b""
        for section in ("server", "replication"):
            connection.send_command("INFO", section)
            info += connection.read_response(disable_decoding=True)
        for call in self._calls(info):
            connection.send_command(*call)
            connection.read_response(disable_decoding=True)

    async def meet_async(self, connection: Any) -> None:
        await connection.on_connect()
        if not self.queues:
            return
        info = b""
        for section in ("server", "replication"):
            await connection.send_command("INFO", section)
            info += await connection.read_response(disable_decoding=True)
        for call in self._calls(info):
            await connection.send_command(*call)
            await connection.read_response(disable_decoding=True)


def connect(address: RedisAddress, greeter: Greeter) -> redis.Redis:
    """A client for calls that answer at once. Every script may be repeated, so a lost reply is asked for again."""
    return redis.Redis.from_url(
        address.url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=REPLY_TIMEOUT_S,
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 1),
        max_connections=MAX_CONNECTIONS,
        driver_info=_DRIVER,
        redis_connect_func=greeter.meet,
    )


def connect_blocking(address: RedisAddress, *, connections: int | None = None) -> redis.Redis:
    """A client for calls that block on the server up to BLOCK_S; never retried, since a block is not a failure.

    It says no hello: what blocks only reads, or takes a wake token, and neither writes an id of an incarnation.
    """
    return redis.Redis.from_url(
        address.url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=BLOCK_S + REPLY_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        max_connections=connections,
        driver_info=_DRIVER,
    )


def connect_async(address: RedisAddress, greeter: Greeter) -> redis.asyncio.Redis:
    """The asynchronous twin of `connect`."""
    return redis.asyncio.Redis.from_url(
        address.url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=REPLY_TIMEOUT_S,
        retry=AsyncRetry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 1),
        driver_info=_DRIVER,
        redis_connect_func=greeter.meet_async,
    )


def connect_async_blocking(address: RedisAddress) -> redis.asyncio.Redis:
    """The asynchronous twin of `connect_blocking`."""
    return redis.asyncio.Redis.from_url(
        address.url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=BLOCK_S + REPLY_TIMEOUT_S,
        retry=AsyncRetry(NoBackoff(), 0),
        driver_info=_DRIVER,
    )
