"""Limits a minute, back-off, Retry-After, and the bound on events: by numbers, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from headpond_workers.engines.openai.bounded_transport import BoundedTransport
from headpond_workers.engines.openai.upstream_failures import ReplyRefused, retry_after
from headpond_workers.engines.openai.upstream_pace import Backoff, Bucket, Pace


def test_a_bucket_fills_at_its_rate_and_no_higher_than_its_size() -> None:
    bucket = Bucket(60, 60, 0.0)
    assert bucket.wait_s(60, 0.0) == 0
    bucket.take(60, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(1.0)
    assert bucket.wait_s(1, 0.5) == pytest.approx(0.5)
    assert bucket.wait_s(60, 1000.0) == 0
    bucket.take(90, 1000.0)
    # What was taken too much is waited for, and what could never be there is not.
    assert bucket.wait_s(1, 1000.0) == pytest.approx(31.0)
    assert bucket.wait_s(10_000, 1000.0) == pytest.approx(90.0)


def test_waits_double_up_to_their_bound_with_jitter_downwards() -> None:
    longest = Backoff(0.5, 30.0, 120.0, draw=lambda: 1.0)
    assert [longest.delay_s(n) for n in (1, 2, 3, 10, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
    shortest = Backoff(0.5, 30.0, 120.0, draw=lambda: 0.0)
    assert shortest.delay_s(2) == 0.5
    assert shortest.delay_s(1, asked_s=7.0) == 7.0
    assert shortest.delay_s(1, asked_s=1e9) == 120.0
    assert longest.delay_s(3, asked_s=0.0) == 2.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "\u0661"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "9" * 1000}, float("9" * 64)),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=lambda: 100.0) == seconds


def test_turns_come_in_their_order_and_a_cancelled_one_costs_nothing() -> None:
    async def run() -> list[str]:
        pace = Pace(6000, None, asyncio.get_running_loop().time)
        order: list[str] = []
        pace.hold(0.2)

        async def turn(name: str) -> None:
            await pace.turn(0)
            order.append(name)

        tasks = [asyncio.create_task(turn(name)) for name in "abc"]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        return order

    assert asyncio.run(run()) == ["a", "c"]


class _Parts(httpx2.AsyncByteStream):
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part


class _Fixed(httpx2.AsyncBaseTransport):
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Parts(self._parts))


def read(parts: list[bytes]) -> bytes:
    async def run() -> bytes:
        transport = BoundedTransport(_Fixed(parts), max_response_bytes=1000, max_event_bytes=20)
        async with httpx2.AsyncClient(transport=transport) as client:
            reply = await client.get("http://x/", headers={"Accept": "text/event-stream"})
            return reply.content

    return asyncio.run(run())


@pytest.mark.parametrize("end", [b"\n\n", b"\r\r", b"\r\n\r\n"])
def test_events_are_counted_wherever_parts_are_cut(end: bytes) -> None:
    whole = (b"data: 12345678" + end) * 20
    for size in (1, 2, 3, 7, len(whole)):
        parts = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert read(parts) == whole
    for size in (1, 2, 3, 7):
        long = b"data: x" + end + b"data: 123456789012345678901" + end
        with pytest.raises(ReplyRefused):
            read([long[at : at + size] for at in range(0, len(long), size)])


def test_lines_without_an_end_of_their_event_are_one_event() -> None:
    with pytest.raises(ReplyRefused, match="max_event_bytes"):
        read([b"data: x\n"] * 10)


def test_a_response_is_counted_as_a_whole() -> None:
    with pytest.raises(ReplyRefused, match="max_response_bytes"):
        read([b"data: x\n\n"] * 200)
