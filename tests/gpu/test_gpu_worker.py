"""A worker process on a real GPU, killed amid its answers: no token is lost and none is repeated.

That the rest is the very text that it would have been is not promised: on a GPU a prompt is read by other kernels
than those that generate, so a token whose runner-up is almost as likely may come out differently.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from conftest import Deployment, eventually
from gpu.model_under_test import ModelUnderTest
from headpond import Client, JobState
from worker_flow import ENDED_S, Reading, assert_read_once, await_tokens, row_of, start_worker

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

JOBS = 4
MAX_TOKENS = 400


@pytest.mark.timeout(900)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_killed_workers_jobs_go_on_after_their_last_token(
    model: ModelUnderTest, deployment: Deployment, client: Client, temperature: float
) -> None:
    deployment.configure(
        f'[models.chat]\nengine = "exllamav2"\npath = "{model.folder}"\nslots = {JOBS}\ncontext_tokens = 2048\n'
        "lease_s = 2.0\n"
    )
    first = start_worker(deployment, "chat-0")
    queue = deployment.queue("chat")
    wanted: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": temperature, "seed": 7}
    jobs = [
        client.submit("chat", f"Tell a long story about {what}.", **wanted)
        for what in ("a river", "a mill", "a wheel", "a pond")
    ]
    readings = [Reading(job) for job in jobs]
    for job in jobs:
        await_tokens(queue, job, 5)
    first.kill()
    rows = [row_of(queue, job) for job in jobs]
    assert {row.state for row in rows} == {JobState.RUNNING}, "a job had ended before the kill"
    for reading, row in zip(readings, rows, strict=True):
        eventually(partial(has_read, reading, row.offset), what="the reader having what the first worker made")
    before = [reading.ids for reading in readings]

    start_worker(deployment, "chat-1")
    results = [job.result(ENDED_S) for job in jobs]

    for reading, had, result in zip(readings, before, results, strict=True):
        assert result.attempts == 2
        assert result.token_ids[: len(had)] == had
        assert len(result.token_ids) > len(had)
        assert_read_once(reading, result)


def has_read(reading: Reading, tokens: int) -> bool:
    return len(reading.ids) >= tokens
