"""What one event of a streamed answer says. Events come from another server: every type is checked. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeGuard

from headpond.errors import SequenceFailed
from headpond.jobs import FinishReason
from headpond_workers.engines.openai.upstream_failures import Blame, UpstreamFailure

_MAX_COUNT = 1 << 40
_REASONS = {"stop": FinishReason.STOP, "eos": FinishReason.STOP, "length": FinishReason.LENGTH}


@dataclass(frozen=True, slots=True)
class TextChunk:
    """text: of the answer; '' without. alive: whether the model did something, such as thinking aloud. reason: why the
    answer ends; None if it goes on. Counts: of the whole answer; None if not said."""

    text: str = ""
    alive: bool = False
    reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """One event of llama.cpp's server. ids, text: that it names. made: tokens of this response so far, the end token
    among them. reason: as of TextChunk; STOP only for the model's own end token."""

    ids: tuple[int, ...]
    text: str
    made: int
    reason: FinishReason | None


def read_text_chunk(event: object) -> TextChunk:
    """Of chat or completions. Raises UpstreamFailure for what is malformed, SequenceFailed for an end that is none."""
    fields = _mapping(event, "an event")
    choices = fields.get("choices")
    if choices is None:
        choices = []
    if not isinstance(choices, list):
        raise _malformed("choices")
    prompt, completion = _usage(fields.get("usage"))
    text, alive, reason = "", False, None
    for raw in choices:
        choice = _mapping(raw, "a choice")
        if choice.get("index", 0) != 0:
            continue
        alive = True
        delta = choice.get("delta")
        holder = choice if delta is None else _mapping(delta, "a delta")
        text += _text(holder.get("text" if delta is None else "content"))
        if delta is not None:
            text += _text(holder.get("refusal"))
        reason = _reason(choice.get("finish_reason")) or reason
    return TextChunk(text, alive, reason, prompt, completion)


def read_token_chunk(event: object) -> TokenChunk | None:
    """Of completions of llama.cpp's server that was asked for token ids; None for a mere sign of life."""
    fields = _mapping(event, "an event")
    detail = fields.get("__verbose")
    if not isinstance(detail, dict):
        return None
    ids = detail.get("tokens")
    made = detail.get("tokens_predicted")
    if not isinstance(ids, list) or not all(_is_id(i) for i in ids) or not _is_count(made):
        raise _malformed("token ids")
    reason = None
    if detail.get("stop"):
        reason = FinishReason.STOP if detail.get("stop_type") == "eos" else FinishReason.LENGTH
    return TokenChunk(tuple(ids), _text(detail.get("content")), made, reason)


def read_ids(value: object) -> list[int]:
    """A list of token ids. Raises UpstreamFailure."""
    if not isinstance(value, list) or not all(_is_id(i) for i in value):
        raise _malformed("token ids")
    return value


def _reason(raw: object) -> FinishReason | None:
    if raw is None:
        return None
    if not isinstance(raw, str):
        raise _malformed("finish_reason")
    if raw in _REASONS:
        return _REASONS[raw]
    if raw == "content_filter":
        raise SequenceFailed("The content filter of the server behind this model ended the answer.")
    raise SequenceFailed(
        f"The server behind this model ended the answer for a reason that headpond does not know: {raw[:40]!r}."
    )


def _usage(raw: object) -> tuple[int | None, int | None]:
    if not isinstance(raw, dict):
        return None, None
    prompt, completion = raw.get("prompt_tokens"), raw.get("completion_tokens")
    return prompt if _is_count(prompt) else None, completion if _is_count(completion) else None


def _text(raw: object) -> str:
    if raw is None:
        return ""
    if not isinstance(raw, str):
        raise _malformed("text")
    # JSON can hold half of a surrogate pair, which no text may.
    return raw if raw.isascii() else raw.encode("utf-8", errors="replace").decode()


def _mapping(raw: object, what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise _malformed(what)
    return raw


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 32


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _malformed(what: str) -> UpstreamFailure:
    return UpstreamFailure(Blame.UNCLEAR, f"the answer is malformed: {what} of a wrong type")
