"""What a real worker process does with its slots: it gives way, it hears of a cancel, and its streams are folded."""

from __future__ import annotations

import asyncio

import pytest

from conftest import Deployment, eventually
from headpond import AsyncClient, Client, Job, JobState
from worker_flow import Reading, assert_read_once, await_tokens, row_of

pytestmark = pytest.mark.slow  # each starts worker processes, and some die of their job

MODEL = """
[models.chat]
engine = "scripted"
tokens_per_s = {speed}
slots = {slots}
lease_s = {lease_s}
answer_tokens = {tokens}
"""
PROMPT = "Tell me of the mill."
QUANTUM, TOKENS = 60, 300


def test_a_batch_job_gives_its_slot_to_an_interactive_one_and_goes_on_as_if_undisturbed(
    deployment: Deployment, client: Client
) -> None:
    deployment.configure(MODEL.format(speed=100, slots=1, lease_s=2.0, tokens=TOKENS))
    worker = deployment.start("chat", "chat-0")
    queue = deployment.queue("chat")
    batch = client.submit("chat", PROMPT, id="chat/batch", seed=7, max_tokens=1000, priority="batch")
    reading = Reading(batch)
    await_tokens(queue, batch, 5)
    urgent = client.submit("chat", "Quick!", id="chat/urgent", max_tokens=20, priority="interactive")

    assert len(urgent.result(timeout=30).token_ids) == 20
    parked = row_of(queue, batch)
    assert not parked.state.ended
    result = batch.result(timeout=30)

    assert_read_once(reading, result)
    calm = client.submit("chat", PROMPT, id="chat/calm", seed=7, max_tokens=1000).result(timeout=30)
    assert (result.token_ids, result.text) == (calm.token_ids, calm.text)
    assert len(result.token_ids) == TOKENS
    (given_up,) = queue.attempts("chat/batch")
    assert (given_up.how, given_up.from_offset) == ("preempted", 0)
    # The quantum, and what was made until the worker had heard of it.
    assert QUANTUM <= given_up.to_offset < TOKENS // 2
    row = row_of(queue, batch)
    assert (row.attempt, row.strikes, row.faults) == (2, 0, 0)
    assert row_of(queue, urgent).ended_ms <= row.claimed_ms
    assert "job_preempted job=chat/batch" in worker.log.read_text()


def test_a_running_job_is_stopped_within_two_steps_of_its_cancel(deployment: Deployment, client: Client) -> None:
    """One step until the worker hears of it, and one at whose end the engine lets go; renewals are far too rare."""
    step_s = 0.25
    deployment.configure(MODEL.format(speed=1 / step_s, slots=1, lease_s=6.0, tokens=400))
    deployment.start("chat", "chat-0")
    queue = deployment.queue("chat")
    job = client.submit("chat", PROMPT, max_tokens=400)
    waiting = client.submit("chat", PROMPT, max_tokens=400)
    reading = Reading(job)
    await_tokens(queue, job, 3)

    assert job.cancel() is JobState.CANCELLED
    reading.join(10)
    assert not reading.is_alive()
    ended = row_of(queue, job)
    eventually(lambda: waiting.state() is JobState.RUNNING, what="the slot being free")
    # Both by the server's clock. A third step is for a busy machine.
    assert row_of(queue, waiting).claimed_ms - ended.ended_ms <= 3 * step_s * 1000
    assert len(reading.ids) == ended.offset

    def made() -> int:
        """Tokens of the worker, as its last renewal told them, once that is later than the cancel."""
        (row,) = queue.workers()
        return row.tokens if row.seen_ms > row_of(queue, waiting).claimed_ms else 0

    made_by_then = eventually(made, what="a renewal")
    assert made_by_then - row_of(queue, waiting).offset - ended.offset <= 2
    assert waiting.cancel() is JobState.CANCELLED


def texts(job: Job, after: int) -> tuple[tuple[int, ...], str]:
    chunks = list(job.stream(after=after))
    assert [chunk.offset for chunk in chunks[:1]] in ([after], [])
    return tuple(i for chunk in chunks for i in chunk.token_ids), "".join(chunk.text for chunk in chunks)


async def read_asynchronously(url: str, job_id: str, after: int) -> tuple[int, ...]:
    async with AsyncClient(url) as client:
        job = client.job(job_id)
        return tuple([i async for chunk in job.stream(after=after) for i in chunk.token_ids])


def test_a_reader_after_the_stream_was_dropped_gets_the_same_tokens_from_any_offset(
    deployment: Deployment, client: Client
) -> None:
    tokens = 70
    config = MODEL.format(speed=2000, slots=2, lease_s=1.0, tokens=tokens) + "stream_retention_s = 2.0\n"
    deployment.configure(config)
    deployment.start("chat", "chat-0")
    queue = deployment.queue("chat")
    job = client.submit("chat", PROMPT, max_tokens=1000)
    result = job.result(timeout=30)
    assert len(result.token_ids) == tokens
    offsets = (0, 1, 33, tokens - 1, tokens)
    before = [texts(job, after) for after in offsets]
    assert queue.events(job.id) != []

    eventually(lambda: queue.events(job.id) == [], what="the stream being dropped")
    again = client.job(job.id)
    assert [texts(again, after) for after in offsets] == before
    assert before[0] == (result.token_ids, result.text)
    assert asyncio.run(read_asynchronously(deployment.url, job.id, 33)) == result.token_ids[33:]
    # Ended is ended: neither reading nor the lost stream changed anything.
    assert again.result(timeout=1) == result
    assert again.cancel() is JobState.FINISHED
