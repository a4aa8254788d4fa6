"""The asynchronous client does what the other does."""

from __future__ import annotations

import asyncio
import time

import pytest

from client_town import PROMPT, Town, assert_one_after_another, client_row, ids_of, text_of
from headpond import AsyncClient, Chunk, JobState, Result
from headpond.connections import RedisAddress
from headpond.errors import (
    JobCancelled,
    JobExpired,
    JobFailed,
    JobGone,
    RedisUnavailable,
    ResultTimeout,
)
from headpond.queue import Server
from headpond_workers.supervision.embedded_valkey import ValkeyProcess


@pytest.fixture
def town(served_town: Town) -> Town:
    return served_town


def test_an_asynchronous_client_does_all_of_it(town: Town) -> None:
    async def main() -> None:
        async with AsyncClient(town.deployment.url) as client:
            assert sorted(await client.models()) == ["chat", "idle", "slow"]
            job = await client.submit("chat", PROMPT, id="chat/asynchronous", max_tokens=40, seed=3)
            assert repr(job) == "AsyncJob('chat/asynchronous')"
            chunks = [chunk async for chunk in job.stream()]
            result = await job.result(timeout=10)
            assert isinstance(result, Result)
            assert_one_after_another(chunks)
            assert (ids_of(chunks), text_of(chunks)) == (result.token_ids, result.text)
            assert len(result.token_ids) == 40
            assert await job.state() is JobState.FINISHED
            assert await job.cancel() is JobState.FINISHED
            again = await client.submit("chat", PROMPT, id="chat/asynchronous", max_tokens=40, seed=3)
            assert await again.result(timeout=0) == result
            assert await client.job("chat/asynchronous").result() == result
            rest = [chunk async for chunk in job.stream(after=30)]
            assert ids_of(rest) == result.token_ids[30:]
            talk = await client.submit("chat", messages=[{"role": "user", "content": PROMPT}], max_tokens=40, seed=3)
            assert (await talk.result(timeout=10)).token_ids == result.token_ids

    asyncio.run(main())
    assert town.client.job("chat/asynchronous").result(timeout=0).text


def test_both_clients_know_whether_anyone_serves_a_job(town: Town) -> None:
    async def main() -> list[bool]:
        async with AsyncClient(town.deployment.url) as client:
            return [await (await client.submit(model, PROMPT, max_tokens=1)).served() for model in ("chat", "idle")]

    assert asyncio.run(main()) == [True, False]
    assert [town.client.submit(model, PROMPT, max_tokens=1).served() for model in ("chat", "idle")] == [True, False]


def test_an_asynchronous_client_runs_many_jobs_at_once(town: Town) -> None:
    async def main() -> list[Result]:
        async with AsyncClient(town.deployment.url) as client:

            async def one(n: int) -> Result:
                job = await client.submit("slow", f"{PROMPT} {n}", max_tokens=10)
                chunks = [chunk async for chunk in job.stream()]
                result = await job.result(timeout=20)
                assert ids_of(chunks) == result.token_ids
                return result

            return list(await asyncio.gather(*(one(n) for n in range(12))))

    results = asyncio.run(main())
    assert len({result.id for result in results}) == 12
    assert all(len(result.token_ids) == 10 for result in results)


def test_an_asynchronous_client_hears_of_ends_without_an_answer(town: Town) -> None:
    async def main() -> None:
        async with AsyncClient(town.deployment.url) as client:
            job = await client.submit("slow", PROMPT)
            seen: list[Chunk] = []
            async for chunk in job.stream():
                seen.append(chunk)
                if len(ids_of(seen)) >= 5:
                    await job.cancel()
            with pytest.raises(JobCancelled) as cancelled:
                await job.result(timeout=5)
            assert (cancelled.value.result.token_ids, cancelled.value.result.text) == (ids_of(seen), text_of(seen))

            expiring = await client.submit("slow", PROMPT, deadline=0.4)
            with pytest.raises(JobExpired):
                await expiring.result(timeout=10)
            with pytest.raises(JobFailed, match="256"):
                await (await client.submit("chat", "x" * 300)).result(timeout=10)
            slow = await client.submit("slow", PROMPT, max_tokens=20)
            began = time.monotonic()
            with pytest.raises(ResultTimeout):
                await slow.result(timeout=0.1)
            assert time.monotonic() - began < 1
            assert (await slow.result(timeout=10)).usage.completion_tokens == 20
            delayed = await client.submit("chat", PROMPT, delay=0.3, max_tokens=2)
            assert await delayed.state() is JobState.DELAYED
            assert len((await delayed.result(timeout=10)).token_ids) == 2
            gone = client.job("chat/never-was")
            for call in (gone.state, gone.cancel, gone.result):
                with pytest.raises(JobGone):
                    await call()
            with pytest.raises(JobGone):
                _ = [chunk async for chunk in gone.stream()]

    asyncio.run(main())


def test_an_asynchronous_client_names_a_server_that_is_away(valkey: ValkeyProcess) -> None:
    url, password = valkey.url, valkey.url.partition("@")[0].rpartition(":")[2]
    valkey.stop()

    async def main() -> None:
        async with AsyncClient(url) as client:
            job = client.job("chat/a")
            for call in (lambda: client.submit("chat", PROMPT), client.models, job.state, job.result, job.cancel):
                began = time.monotonic()
                with pytest.raises(RedisUnavailable) as refused:
                    await call()
                assert time.monotonic() - began < 5
                assert refused.value.configured_in == "the url argument"
                assert password not in str(refused.value)

    asyncio.run(main())


def test_an_asynchronous_wait_ends_in_time_while_the_server_is_away(valkey: ValkeyProcess) -> None:
    server = Server(RedisAddress(valkey.url, "the test"))
    server.configure_model("chat", client_row())

    async def main() -> float:
        async with AsyncClient(valkey.url) as client:
            job = await client.submit("chat", PROMPT)
            began = time.monotonic()
            waiting = asyncio.create_task(job.result(timeout=1.0))
            while not any(c["cmd"] == "xread" for c in server.redis.client_list()):
                await asyncio.sleep(0.01)
                assert time.monotonic() - began < 5
            valkey.kill()
            with pytest.raises(ResultTimeout):
                await waiting
            return time.monotonic() - began

    assert asyncio.run(main()) < 4
    server.close()
