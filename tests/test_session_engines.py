"""Conversations on engines that are not the reference: another server's, and llama.cpp."""

from __future__ import annotations

import pytest

from conftest import Deployment
from headpond import Client
from headpond_workers.models.prepare import prepare
from misbehaving_server import misbehaving_server
from proxy_flow import start, table
from worker_flow import start_worker

pytestmark = pytest.mark.slow

SOURCE = "smollm2-135m:Q8_0"
LLAMA = f"""
[models.chat]
engine = "llamacpp"
source = "{SOURCE}"
threads = 1
slots = 1
context_tokens = 512
"""


def test_another_server_is_given_the_whole_conversation(deployment: Deployment, client: Client) -> None:
    with misbehaving_server() as server:
        deployment.configure(table(server.url))
        start(deployment, "remote-0")
        first = client.submit("remote", "Who are you?", session="s").result(timeout=30)
        second = client.submit("remote", "And why?", session="s").result(timeout=30)
        asked = [request.body["messages"] for request in server.received if "messages" in request.body]
    assert asked[-1] == [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And why?"},
    ]
    assert [commit.id for commit in client.session("remote/s").commits()] == [first.commit, second.commit]


def test_llama_cpp_answers_a_turn_as_it_would_answer_the_whole_conversation(
    deployment: Deployment, client: Client
) -> None:
    prepare(SOURCE, progress=lambda *_: None)
    deployment.configure(LLAMA)
    start_worker(deployment, "chat-0")
    wanted = {"max_tokens": 16, "temperature": 0.0}
    first = client.submit("chat", "My name is Ada.", session="s", **wanted).result(timeout=120)
    second = client.submit("chat", "What is my name?", session="s", **wanted).result(timeout=120)
    whole = client.session("chat/s").messages()
    assert [message["role"] for message in whole] == ["user", "assistant", "user", "assistant"]
    alone = client.submit("chat", messages=whole[:-1], **wanted).result(timeout=120)
    assert second.token_ids == alone.token_ids
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + len(first.token_ids)
    assert whole[-1]["content"] == second.text
