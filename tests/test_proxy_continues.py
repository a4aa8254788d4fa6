"""A proxy to llama.cpp's own HTTP server, with a real model: answers go on from their token ids, whoever is killed."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import Deployment, eventually
from headpond import Client, FinishReason, Job
from headpond.settings import check_settings
from headpond.tables import OpenAIModel
from headpond_workers.engines.openai.client import UpstreamClient
from headpond_workers.engines.openai.loop_thread import LoopThread
from headpond_workers.engines.openai.upstream_ids import TokenServer
from headpond_workers.engines.openai.upstream_secrets import resolve_secrets
from llama_http_server import LlamaHttpServer, llama_http_server
from proxy_flow import KEY, Reading, rewinds, start, table

pytestmark = pytest.mark.slow

PROMPT = "Explain in a few sentences why rivers bend."
EMOJI = "Repeat after me: \U0001f389\U0001f9d1\u200d\U0001f680 \u65e5\u672c\u8a9e\U0001f355"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaHttpServer]:
    with llama_http_server(tmp_path_factory.mktemp("llama"), key=KEY) as server:
        yield server


def configure(deployment: Deployment, upstream: LlamaHttpServer) -> None:
    settings = {"resume": '"continue"', "slots": 2, "max_retries": 20, "first_token_timeout_s": 30.0}
    deployment.configure(table(upstream.url, **settings))


def text_of(deployment: Deployment, ids: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the server itself makes of ids."""
    monkeypatch.setenv("TEST_UPSTREAM_KEY", KEY)
    models = tomllib.loads(deployment.config.read_text())["models"]
    settings = check_settings({"models": models}, file=deployment.config).model("remote")
    assert isinstance(settings, OpenAIModel)
    loop: LoopThread[None] = LoopThread("test")
    client = UpstreamClient(settings, resolve_secrets(settings))
    try:
        return loop.run(TokenServer(settings, client).text_of(list(ids)))
    finally:
        loop.close()


def assert_whole(deployment: Deployment, job: Job, reading: Reading) -> None:
    """Every token was read once and in order, and nothing was rewound."""
    result = job.result(timeout=90)
    reading.ended()
    assert reading.restarts == 0
    assert reading.text == result.text
    assert tuple(i for chunk in reading.chunks for i in chunk.token_ids) == result.token_ids
    assert rewinds(deployment.queue("remote"), job) == []
    assert min(result.token_ids) >= 0


def test_answers_have_ids_whose_text_is_theirs_and_end_where_they_are_told(
    deployment: Deployment, client: Client, upstream: LlamaHttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(deployment, upstream)
    start(deployment, "remote-0")
    asked: dict[str, Any] = {"max_tokens": 40, "temperature": 0.0}
    jobs = [client.submit("remote", PROMPT, **asked), client.submit("remote", EMOJI, **asked)]
    plain, emoji = (job.result(timeout=60) for job in jobs)
    for result in (plain, emoji):
        assert text_of(deployment, result.token_ids, monkeypatch) == result.text
        assert result.usage.completion_tokens == len(result.token_ids) > 10
        assert result.usage.prompt_tokens > 10
    assert any(ord(character) > 0xFFFF for character in emoji.text)
    assert "\N{REPLACEMENT CHARACTER}" not in emoji.text
    # A character of several tokens belongs to the one that completes it.
    assert "" in emoji.pieces

    stop = plain.text.split()[5]
    cut = client.submit("remote", PROMPT, stop=[stop], **asked).result(timeout=60)
    assert (cut.finish_reason, stop in cut.text) == (FinishReason.STOP, False)
    assert plain.text.startswith(cut.text)
    token = plain.token_ids[6]
    at = plain.token_ids.index(token)
    ended = client.submit("remote", PROMPT, stop_token_ids=[token], **asked).result(timeout=60)
    assert (ended.finish_reason, ended.token_ids) == (FinishReason.STOP, plain.token_ids[:at])
    short = client.submit("remote", PROMPT, max_tokens=5, temperature=0.0).result(timeout=60)
    assert (short.finish_reason, len(short.token_ids)) == (FinishReason.LENGTH, 5)


def test_a_killed_workers_answer_goes_on_in_another(
    deployment: Deployment, client: Client, upstream: LlamaHttpServer
) -> None:
    configure(deployment, upstream)
    first = start(deployment, "remote-0")
    job = client.submit("remote", "Write a long story about a river.", max_tokens=70, temperature=0.0)
    reading = Reading(job)
    reading.await_tokens(10)
    first.kill()
    start(deployment, "remote-1")
    assert_whole(deployment, job, reading)
    assert job.result().attempts == 2


def test_a_killed_server_that_comes_back_goes_on_with_the_same_answer(
    deployment: Deployment, client: Client, upstream: LlamaHttpServer
) -> None:
    configure(deployment, upstream)
    worker = start(deployment, "remote-0")
    job = client.submit("remote", "Write a long story about a river.", max_tokens=70, temperature=0.0)
    reading = Reading(job)
    reading.await_tokens(10)
    upstream.kill()
    eventually(lambda: "upstream_failed" in worker.log.read_text(), what="the worker to notice")
    upstream.start()
    assert_whole(deployment, job, reading)
    row = deployment.queue("remote").run_row(job.id)
    assert row is not None
    assert (row.strikes, row.faults) == (0, 0)
