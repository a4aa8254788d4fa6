"""Requests to one server through the openai SDK: bounded, without redirects, without the process's environment."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, Omit

from headpond.errors import ConfigError
from headpond.tables import OpenAIModel
from headpond_workers.engines.openai.bounded_transport import EVENT_STREAM, BoundedTransport
from headpond_workers.engines.openai.upstream_failures import Blame, ReplyRefused, UpstreamFailure, failure_of
from headpond_workers.engines.openai.upstream_secrets import Secrets

AFTER_END_S = 5.0
"""How long a stream that has said how it ends may take for the rest, such as its counts."""
_ERRORS = (openai.OpenAIError, httpx2.HTTPError, ReplyRefused, ValueError, RecursionError)
"""What a request may end with. An answer that is not UTF-8 or not JSON is a ValueError of the SDK's decoder."""


class Heard(Enum):
    """What one event of a stream was."""

    MOVED = "moved"
    """The answer goes on: the next event may take token_timeout_s."""
    IDLE = "idle"
    """A mere sign of life, which prolongs nothing."""
    ENDED = "ended"
    """The answer has said how it ends. Whatever happens to the connection now, it is whole."""
    ENOUGH = "enough"
    """The rest is not wanted."""


class UpstreamClient:
    """For the tasks of one event loop. Each request is tried once."""

    def __init__(self, settings: OpenAIModel, secrets: Secrets) -> None:
        """Raises ConfigError for certificates that cannot be read."""
        # Their debug logs show headers.
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._settings = settings
        self._running, self._retired = 0, False
        timeout = httpx2.Timeout(None, connect=settings.connect_timeout_s)
        limits = httpx2.Limits(max_connections=settings.slots + 2, max_keepalive_connections=settings.slots)
        transport = BoundedTransport(
            httpx2.AsyncHTTPTransport(
                verify=_certificates(settings), trust_env=False, limits=limits, proxy=secrets.proxy
            ),
            max_response_bytes=settings.max_response_bytes,
            max_event_bytes=settings.max_event_bytes,
        )
        self._headers = _headers(settings, secrets)
        # All waits but that for the connection are bounded here, by what the answer says.
        self._client = AsyncOpenAI(
            api_key=secrets.api_key or "none",
            base_url=settings.base_url,
            max_retries=0,
            timeout=timeout,
            http_client=httpx2.AsyncClient(
                transport=transport, follow_redirects=False, trust_env=False, timeout=timeout
            ),
        )
        # The SDK reads these from the environment of the process, which is not this model's.
        self._client.organization, self._client.project = settings.organisation, settings.project
        self._client._custom_headers = {}

    async def stream(self, path: str, body: Mapping[str, Any], hear: Callable[[object], Heard]) -> None:
        """POST, and hand each event of the answer to `hear`, parsed and unchecked.

        Returns once the answer has ended, in whatever way. Raises UpstreamFailure, and what `hear` raises.
        """
        last = Heard.IDLE
        limit_s = self._settings.first_token_timeout_s
        try:
            async with self._counted(), asyncio.timeout(limit_s) as clock:
                reply = await self._client.post(
                    path,
                    body=dict(body),
                    cast_to=object,
                    stream=True,
                    stream_cls=AsyncStream[object],
                    options={"headers": {**self._headers, "Accept": EVENT_STREAM}},
                )
                async with reply:
                    async for event in reply:
                        heard = hear(event)
                        if heard is Heard.ENOUGH:
                            return
                        if heard is Heard.IDLE:
                            continue
                        limit_s = AFTER_END_S if Heard.ENDED in (heard, last) else self._settings.token_timeout_s
                        last = Heard.ENDED if Heard.ENDED in (heard, last) else heard
                        clock.reschedule(asyncio.get_running_loop().time() + limit_s)
        except TimeoutError:
            if last is not Heard.ENDED:
                raise UpstreamFailure(Blame.UNCLEAR, f"the answer made no step for {limit_s:g} s") from None
        except _ERRORS as error:
            if last is not Heard.ENDED:
                raise failure_of(error) from None

    async def post(self, url: str, body: Mapping[str, Any]) -> object:
        """POST, and the whole reply, parsed and unchecked. url: absolute, or relative to base_url.

        Raises UpstreamFailure.
        """
        try:
            async with self._counted(), asyncio.timeout(self._settings.first_token_timeout_s):
                return await self._client.post(url, body=dict(body), cast_to=object, options={"headers": self._headers})
        except TimeoutError:
            raise UpstreamFailure(Blame.OUTAGE, "the server did not answer in time") from None
        except _ERRORS as error:
            raise failure_of(error) from None

    async def retire(self) -> None:
        """Close once the requests that run have ended; there are no further ones."""
        self._retired = True
        if self._running == 0:
            await self._client.close()

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._retired and self._running == 0:
                await self._client.close()


def _headers(settings: OpenAIModel, secrets: Secrets) -> dict[str, str | Omit]:
    headers: dict[str, str | Omit] = {**secrets.headers, "Accept-Encoding": "identity"}
    if secrets.api_key is None:
        headers["Authorization"] = Omit()
    return headers


def _certificates(settings: OpenAIModel) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot read certificates from {settings.ca_file}: {error}", where="ca_file") from None
