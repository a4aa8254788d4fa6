"""From a job to the body of a request to another server. What that server does not take is refused, never left out."""

from __future__ import annotations

import json
from typing import Any

from headpond.errors import CapabilityMissing, SequenceFailed
from headpond.requests import JobRequest
from headpond.tables import OpenAIModel
from headpond_workers.engines.seeds import seed_at

CHAT, COMPLETIONS = "/chat/completions", "/completions"
PROBE_TEXT = "Hi"
PROBE_TOKENS = 16
"""Some servers refuse to make fewer."""


def check_request(settings: OpenAIModel, asked: JobRequest) -> None:
    """Raises CapabilityMissing or SequenceFailed, naming the first thing that the table does not let through."""
    if asked.input is not None:
        raise CapabilityMissing(settings.engine, "embeddings")
    if asked.adapter is not None:
        raise CapabilityMissing(settings.engine, "adapters")
    if asked.grammar is not None:
        raise CapabilityMissing(settings.engine, "grammar")
    wanted = asked.response_format
    if wanted is not None and wanted.type != "text" and wanted.type not in settings.response_formats:
        raise CapabilityMissing(settings.engine, "json_schema", remedy=_format_remedy(settings, wanted.type))
    for name in sorted(asked.sampling.asks_for() - settings.sampling.keys()):
        raise CapabilityMissing(
            settings.engine,
            name,
            remedy=f'If its server can, list that under the key `sampling`: sampling = [..., "{name}"], or '
            f'sampling = {{{name} = "ITS NAME THERE"}}. Else leave it out of the request.',
        )
    if asked.stop_token_ids and settings.resume != "continue":
        raise SequenceFailed("The server behind this model names no token ids, so stop_token_ids cannot be kept.")
    if settings.mode == "completions" and asked.prompt is None:
        raise SequenceFailed('This model takes a prompt alone (mode = "completions"), and no messages.')


def _format_remedy(settings: OpenAIModel, kind: str) -> str:
    needed = [
        *(['mode = "chat"'] if settings.mode != "chat" else []),
        *(['resume = "rewind" ("continue" refuses formats of answers)'] if settings.resume == "continue" else []),
    ]
    also = f" That needs {' and '.join(needed)}." if needed else ""
    listed = json.dumps([*settings.response_formats, kind])
    return f"If its server can, write response_formats = {listed} there.{also} Else ask for no response_format."


def request_body(settings: OpenAIModel, asked: JobRequest) -> tuple[str, dict[str, Any]]:
    """Path and body of a request whose answer is text."""
    body: dict[str, Any] = _common(settings, asked)
    body[settings.max_tokens_field if settings.mode == "chat" else "max_tokens"] = asked.max_tokens
    if asked.sampling.seed is not None:
        # Not the one that follows from the id: servers that know no seed refuse it.
        body["seed"] = asked.sampling.seed
    if asked.stop and settings.stop_strings:
        body["stop"] = list(asked.stop[: settings.stop_strings])
    if settings.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if settings.mode == "completions":
        return COMPLETIONS, body | {"prompt": asked.prompt}
    if asked.response_format is not None and asked.response_format.type != "text":
        body["response_format"] = asked.response_format.model_dump(mode="json", exclude_none=True, by_alias=True)
    messages = [{"role": message.role, "content": message.content} for message in asked.chat()]
    return CHAT, body | {"messages": messages}


def continuation_body(
    settings: OpenAIModel, asked: JobRequest, *, prompt: list[int], made: int, max_tokens: int, seed: int, stream: bool
) -> dict[str, Any]:
    """Of a request to llama.cpp's server that goes on after token ids, and names those that it makes.

    prompt: all ids so far. made: how many of them are of the answer. Stop strings are left to the worker: the server
    would cut them out of the text and name their ids all the same.
    """
    return _common(settings, asked) | {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "seed": seed_at(seed, made),
        "stream": stream,
        "return_tokens": True,
        "verbose": True,
    }


def probe_request() -> JobRequest:
    """The smallest job that shows whether the server answers."""
    return JobRequest(prompt=PROBE_TEXT, max_tokens=PROBE_TOKENS)


def _common(settings: OpenAIModel, asked: JobRequest) -> dict[str, Any]:
    sampling = asked.sampling.model_dump(mode="json")
    wanted = asked.sampling.asks_for()
    return {
        "model": settings.upstream_model,
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "stream": True,
        **{theirs: sampling[ours] for ours, theirs in settings.sampling.items() if ours in wanted},
    }
