"""What a client refuses, and that nothing is enqueued then."""

from __future__ import annotations

import asyncio
import inspect
import math
from pathlib import Path
from typing import Any

import pytest

from client_town import PROMPT, Town, client_row
from headpond import AsyncClient, Client, JobState
from headpond.cli.request_options import form_of
from headpond.errors import IdConflict, InvalidRequest, UnknownModel
from headpond.requests import MAX_BODY_BYTES, parse_request
from headpond.sampling import BASIC, Sampling, SamplingOptions
from headpond.wire import unpack_data


@pytest.fixture
def town(served_town: Town) -> Town:
    return served_town


@pytest.fixture
def client(served_town: Town) -> Client:
    return served_town.client


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "request"),
    "an empty prompt": ({"prompt": ""}, "request"),
    "a blank prompt": ({"prompt": " \n\t"}, "request"),
    "prompt and messages": ({"messages": [{"role": "user", "content": "Hi"}]}, "request"),
    "no messages": ({"prompt": None, "messages": []}, "request"),
    "empty messages": ({"prompt": None, "messages": [{"role": "user", "content": " "}]}, "request"),
    "a message without content": ({"prompt": None, "messages": [{"role": "user"}]}, "messages.0.content"),
    "a message of nobody": ({"prompt": None, "messages": [{"role": "god", "content": "Hi"}]}, "messages.0.role"),
    "a message with more": (
        {"prompt": None, "messages": [{"role": "user", "content": "Hi", "name": "x"}]}, "messages.0.name",
    ),
    "a message that is text": ({"prompt": None, "messages": ["Hi"]}, "messages.0"),
    "a message that is a number": ({"prompt": None, "messages": [7]}, "messages.0"),
    "messages that are text": ({"prompt": None, "messages": "Hi"}, "messages"),
    "messages that are a number": ({"prompt": None, "messages": 7}, "messages"),
    "a prompt that is bytes": ({"prompt": b"Hi"}, "prompt"),
    "a prompt that is a number": ({"prompt": 7}, "prompt"),
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "negative tokens": ({"max_tokens": -1}, "max_tokens"),
    "too many tokens": ({"max_tokens": (1 << 20) + 1}, "max_tokens"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens"),
    "true tokens": ({"max_tokens": True}, "max_tokens"),
    "a temperature that is no number": ({"temperature": math.nan}, "sampling.temperature"),
    "an infinite temperature": ({"temperature": math.inf}, "sampling.temperature"),
    "a negative temperature": ({"temperature": -0.1}, "sampling.temperature"),
    "a temperature of text": ({"temperature": "hot"}, "sampling.temperature"),
    "a true temperature": ({"temperature": True}, "sampling.temperature"),
    "no temperature": ({"temperature": None}, "sampling.temperature"),
    "top_p of none": ({"top_p": 0}, "sampling.top_p"),
    "top_p of more than all": ({"top_p": 1.1}, "sampling.top_p"),
    "top_p that is no number": ({"top_p": math.nan}, "sampling.top_p"),
    "a negative seed": ({"seed": -1}, "sampling.seed"),
    "a seed beyond 32 bits": ({"seed": 1 << 32}, "sampling.seed"),
    "half a seed": ({"seed": 0.5}, "sampling.seed"),
    "a setting that there is not": ({"topk": 4}, "topk"),
    "a text to embed that is empty": ({"prompt": None, "input": ["a", ""]}, "input.1"),
    "a negative top_k": ({"top_k": -1}, "sampling.top_k"),
    "a top_k that is no whole number": ({"top_k": 1.5}, "sampling.top_k"),
    "a number that no float holds": ({"min_p": 10**400}, "sampling.min_p"),
    "a bias too small for single precision": ({"logit_bias": {7: 1e-300}}, "sampling.logit_bias.7"),
    "a bias beyond its bound": ({"logit_bias": {7: 101}}, "sampling.logit_bias.7"),
    "a bias of no token": ({"logit_bias": {"x": 1}}, "sampling.logit_bias"),
    "no response format": ({"response_format": {"type": "banana"}}, "response_format.type"),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 7}}}, "response_format.json_schema.schema"
    ),
    "a format and a grammar": (
        {"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "request",
    ),
    "a grammar that is empty": ({"grammar": ""}, "grammar"),
    "a lone surrogate": ({"prompt": "a\ud800b"}, "request"),
    "a lone surrogate in a message": (
        {"prompt": None, "messages": [{"role": "user", "content": "\udfff"}]}, "request",
    ),
    "a lone surrogate in a stop": ({"stop": ["\ud800"]}, "stop.0"),
    "an empty stop": ({"stop": [""]}, "stop.0"),
    "an empty stop string": ({"stop": ""}, "stop.0"),
    "too many stops": ({"stop": [f"s{n}" for n in range(17)]}, "stop"),
    "a stop token below zero": ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    "too many stop tokens": ({"stop_token_ids": range(65)}, "stop_token_ids"),
    "an adapter with a path for a name": ({"adapter": "../lora"}, "adapter"),
    "a stop too long": ({"stop": "x" * 257}, "stop.0"),
    "a stop that is a number": ({"stop": 7}, "stop"),
    "stops that are numbers": ({"stop": [7]}, "stop.0"),
    "a body beyond its limit": ({"prompt": "x" * MAX_BODY_BYTES}, "request"),
    "a body beyond its limit in bytes": ({"prompt": "\N{EURO SIGN}" * (MAX_BODY_BYTES // 3)}, "request"),
    "an id of another model": ({"id": "slow/a"}, "id"),
    "an id without model": ({"id": "order-17"}, "id"),
    "an id without slug": ({"id": "idle/"}, "id"),
    "an id with a second slash": ({"id": "idle/a/b"}, "id"),
    "an id with a space": ({"id": "idle/a b"}, "id"),
    "an id with a newline": ({"id": "idle/a\n"}, "id"),
    "an id with a brace": ({"id": "idle/{a}"}, "id"),
    "an id that begins with a dot": ({"id": "idle/.a"}, "id"),
    "an id too long": ({"id": "idle/" + "a" * 128}, "id"),
    "an empty id": ({"id": ""}, "id"),
    "a negative delay": ({"delay": -1}, "delay"),
    "a delay that is no number": ({"delay": math.nan}, "delay"),
    "an endless delay": ({"delay": math.inf}, "delay"),
    "a deadline of now": ({"deadline": 0}, "deadline"),
    "a deadline that is past": ({"deadline": -5}, "deadline"),
    "a deadline that is no number": ({"deadline": math.nan}, "deadline"),
    "an endless deadline": ({"deadline": math.inf}, "deadline"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSALS)
def test_bad_input_is_refused_by_its_field_and_nothing_is_enqueued(client: Client, town: Town, what: str) -> None:
    options, field = REFUSALS[what]
    before = sorted(town.queue("idle").ids())
    with pytest.raises(InvalidRequest) as refused:
        client.submit("idle", **({"prompt": PROMPT} | options))
    assert refused.value.field == field
    assert not refused.value.retry
    assert len(str(refused.value)) < 500
    assert sorted(town.queue("idle").ids()) == before


def test_settings_and_formats_reach_the_request(client: Client, town: Town) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": True}}
    job = client.submit(
        "idle", PROMPT, temperature=1, top_k=40, min_p=0, mirostat_tau=3, dry_sequence_breakers=["x"], top_n_sigma=2,
        logit_bias={7: 1, 8: -0.5}, response_format={"type": "json_schema", "json_schema": {"schema": schema}},
    )  # fmt: skip
    bound = client.submit("idle", PROMPT, grammar='root ::= "a"')
    asked = unpack_data(town.queue("idle").data(job.id) or b"").kwargs["request"]

    assert asked["sampling"] == {
        "top_k": 40,
        "mirostat_tau": 3.0,
        "dry_sequence_breakers": ["x"],
        "top_n_sigma": 2.0,
        "logit_bias": {"7": 1.0, "8": -0.5},
    }
    # Properties are generated in the order in which they are given.
    assert list(asked["response_format"]["json_schema"]["schema"]["properties"]) == ["b", "a"]
    assert unpack_data(town.queue("idle").data(bound.id) or b"").kwargs["request"]["grammar"] == 'root ::= "a"'
    for submitted in (job, bound):
        assert submitted.cancel() is JobState.CANCELLED


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"bogus": 1}, "bogus: there is no such argument"),
        ({"topk": 4}, "topk: there is no such argument; did you mean 'top_k'?"),
        ({"max_token": 4}, "max_token: there is no such argument; did you mean 'max_tokens'?"),
        ({"dead_line": 4}, "dead_line: there is no such argument; did you mean 'deadline'?"),
        ({"prompt": None, "input": []}, "input: give a text; there is none"),
        ({"prompt": None, "input": ["a", ""]}, "input.1: give a text; this one is empty"),
        (
            {"prompt": None, "messages": [{"role": "user", "content": "a", "contents": "b"}]},
            "messages.0.contents: there is no such field; did you mean 'content'?",
        ),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x: there is no such field"),
    ],
)
def test_a_refusal_says_what_to_do_in_plain_words(client: Client, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.submit("chat", **{"prompt": PROMPT, **arguments})
    assert str(refused.value) == told


def test_a_file_that_is_nested_too_deep_is_refused_in_plain_words(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text("[" * 100_000)
    with pytest.raises(InvalidRequest, match=r"schema\.json: not JSON: it is nested too deep$"):
        form_of(None, file, None)


@pytest.mark.parametrize("name", [name for name, field in Sampling.model_fields.items() if "float" in str(field)])
def test_a_number_that_single_precision_loses_is_refused_with_the_bound(client: Client, name: str) -> None:
    options = {name: {7: 1e-300} if name == "logit_bias" else 1e-300}
    if name == "dry_base":  # from 1 on
        with pytest.raises(InvalidRequest, match="greater than or equal to 1"):
            client.submit("chat", PROMPT, **options)
        return
    for value in (5e-324, 1e-300, 1e-46, 1e-39, 9e-31, -1e-300):
        if value < 0 and name not in ("presence_penalty", "frequency_penalty", "logit_bias"):
            continue
        options = {name: {7: value} if name == "logit_bias" else value}
        with pytest.raises(InvalidRequest, match=r"too near to 0: .* The least is 1e-30") as refused:
            client.submit("chat", PROMPT, **options)
        assert refused.value.field.startswith(f"sampling.{name}")
    assert parse_request({"prompt": PROMPT, "sampling": {name: {"7": 1e-30} if name == "logit_bias" else 1e-30}})


def test_the_keyword_arguments_of_sampling_are_its_fields() -> None:
    assert set(SamplingOptions.__annotations__) == Sampling.model_fields.keys() - BASIC
    parameters = inspect.signature(Client.submit).parameters
    assert parameters.keys() >= BASIC


def test_a_body_at_its_limit_is_taken(client: Client) -> None:
    job = client.submit("idle", "x" * (MAX_BODY_BYTES - 500))
    assert job.cancel() is JobState.CANCELLED


@pytest.mark.parametrize("model", ["chatt", "", "Chat", "persistence", "x" * 5000, "{chat}", "chat/a"])
def test_an_unknown_model_is_refused_with_those_that_are_known(client: Client, town: Town, model: str) -> None:
    keys = sorted(town.deployment.server().read("KEYS", "*"))
    with pytest.raises(UnknownModel, match="chat, idle, slow") as refused:
        client.submit(model, PROMPT)
    assert refused.value.known == ["chat", "idle", "slow"]
    assert len(str(refused.value)) < 300
    assert sorted(town.deployment.server().read("KEYS", "*")) == keys


def test_the_configured_models_are_listed_with_or_without_a_worker(client: Client) -> None:
    models = client.models()
    assert sorted(models) == ["chat", "idle", "slow"]
    assert (models["chat"].engine, models["chat"].context_tokens, models["chat"].storage) == ("scripted", 256, False)


def test_a_model_that_was_configured_later_is_found(town: Town) -> None:
    with Client(town.deployment.url) as client:
        client.models()
        server = town.deployment.server()
        server.configure_model("newcomer", client_row())
        try:
            assert client.submit("newcomer", PROMPT).state() is JobState.QUEUED
        finally:
            server.read("HDEL", "headpond:models", "newcomer")


@pytest.mark.parametrize("job_id", ["", "chat", "chat/", "/a", "Chat/a", "chat/a/b", "chat/a\n", "{c}/a"])
def test_what_is_no_id_is_refused(client: Client, job_id: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.job(job_id)
    assert refused.value.field == "id"


def test_an_asynchronous_client_refuses_bad_input_alike(town: Town) -> None:
    async def main() -> None:
        async with AsyncClient(town.deployment.url) as client:
            with pytest.raises(UnknownModel, match="chat, idle, slow"):
                await client.submit("chatt", PROMPT)
            for options, field in REFUSALS.values():
                with pytest.raises(InvalidRequest) as refused:
                    await client.submit("idle", **({"prompt": PROMPT} | options))
                assert refused.value.field == field
            await client.submit("idle", PROMPT, id="idle/of-an-asynchronous-one")
            with pytest.raises(IdConflict):
                await client.submit("idle", "another", id="idle/of-an-asynchronous-one")
            assert await client.job("idle/of-an-asynchronous-one").cancel() is JobState.CANCELLED
            with pytest.raises(InvalidRequest):
                client.job("no id")
            with pytest.raises(InvalidRequest):
                _ = [chunk async for chunk in client.job("idle/a").stream(after=-1)]

    asyncio.run(main())
