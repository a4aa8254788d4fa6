"""HTTP as a proxy uses it: a reply is refused before it takes more memory than it may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NoReturn

import httpx2

from headpond_workers.engines.openai.upstream_failures import Blame, ReplyRefused

EVENT_STREAM = "text/event-stream"
_JSON = "application/json"
MAX_ERROR_BYTES = 1 << 20
"""Of a reply that is no success."""
_EVENT_ENDS = (b"\n\n", b"\r\r", b"\r\n\r\n")
_LONGEST_END = 4


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Counts the bytes of each reply, and of each event of a stream: the SDK's decoder keeps an event until it ends.

    A request that accepts EVENT_STREAM gets that, or an error. Nothing is decompressed: what is compressed is refused.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport, *, max_response_bytes: int, max_event_bytes: int) -> None:
        self._inner = inner
        self._max_response_bytes, self._max_event_bytes = max_response_bytes, max_event_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        try:
            streamed = self._check_head(request, response)
            if streamed is None:
                await self._refuse_whole(response)
        except ReplyRefused:
            await response.aclose()
            raise
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - what an async transport gives
        most = self._max_response_bytes if response.is_success else min(MAX_ERROR_BYTES, self._max_response_bytes)
        stream = _BoundedStream(
            response.stream, max_bytes=most, max_event_bytes=self._max_event_bytes if streamed else None
        )
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    def _check_head(self, request: httpx2.Request, response: httpx2.Response) -> bool | None:
        """Whether the reply is a stream of events; None if it is JSON in its place."""
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise ReplyRefused("the answer is compressed, which was not asked for", Blame.HOPELESS)
        length = response.headers.get("content-length", "")
        if response.is_success and length.isdigit() and (len(length) > 15 or int(length) > self._max_response_bytes):
            raise ReplyRefused(_too_long(self._max_response_bytes), Blame.HOPELESS)
        asked = request.headers.get("accept", "").startswith(EVENT_STREAM)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if asked and response.is_success and kind == _JSON:
            return None
        if asked and response.is_success and kind != EVENT_STREAM:
            raise ReplyRefused(f"the answer is no stream of events but {kind[:60] or 'untyped'}", Blame.UNCLEAR)
        return asked and response.is_success

    async def _refuse_whole(self, response: httpx2.Response) -> NoReturn:
        """JSON where a stream was asked for. With an answer in it the server does not stream, now or later; anything
        else may be an error of the moment."""
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - what an async transport gives
        most = min(MAX_ERROR_BYTES, self._max_response_bytes)
        read = bytearray()
        async for part in response.stream:
            read += part
            if len(read) > most:
                break
        if b'"choices"' in read:
            raise ReplyRefused(
                "the server does not stream: it answers in one piece (application/json) where a stream of events was "
                'asked for ("stream": true). Let it stream, or take another server',
                Blame.HOPELESS,
            )
        raise ReplyRefused(f"the answer is no stream of events but {_JSON}", Blame.UNCLEAR)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, *, max_bytes: int, max_event_bytes: int | None) -> None:
        self._inner, self._max_bytes, self._max_event_bytes = inner, max_bytes, max_event_bytes
        self._bytes, self._event_bytes, self._tail = 0, 0, b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._inner:
            self._bytes += len(part)
            if self._bytes > self._max_bytes:
                raise ReplyRefused(_too_long(self._max_bytes), Blame.HOPELESS)
            if self._max_event_bytes is not None:
                self._count_event(part, self._max_event_bytes)
            yield part

    def _count_event(self, part: bytes, most: int) -> None:
        joined = self._tail + part
        end = max(at + len(mark) if (at := joined.rfind(mark)) >= 0 else -1 for mark in _EVENT_ENDS)
        self._event_bytes = self._event_bytes + len(part) if end < 0 else len(joined) - end
        self._tail = joined[max(end, 0) :][-_LONGEST_END + 1 :]
        # What came in one part is in memory already; parts are no longer than the connection reads at once.
        if self._event_bytes > most:
            raise ReplyRefused(
                f"a line or event of the answer has more than {most} bytes (max_event_bytes)", Blame.HOPELESS
            )

    async def aclose(self) -> None:
        await self._inner.aclose()


def _too_long(most: int) -> str:
    return f"the answer has more than {most} bytes (max_response_bytes)"
