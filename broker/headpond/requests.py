"""What one job asks of a model: its input, limits, sampling, and what its answer must look like. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headpond.codec import pack
from headpond.constraints import MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind, ResponseFormat
from headpond.errors import InvalidRequest
from headpond.jobs import ADAPTER_NAME
from headpond.nearby import nearest
from headpond.sampling import Sampling
from headpond.turns import TurnRequest

MAX_BODY_BYTES = 1 << 20
"""Upper bound of one request's text, in UTF-8 bytes."""
MAX_TOKENS_LIMIT = 1 << 20
MAX_INPUTS = 1024
"""Texts of one job for embeddings."""
JSON_ALLOWANCE_BYTES = 1 << 16
"""More than a request has as JSON beside its texts, with as many stop texts and tokens as it may have."""

_Text = Annotated[str, Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_DEFAULT_SAMPLING = Sampling()


class Message(_Frozen):
    """One turn of a conversation, rendered by the model's own chat template."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class JobRequest(_Frozen):
    """What one job asks of a model. Exactly one of `prompt`, `messages` and `input` is given.

    A prompt is shown to the model as one user message when the model has a chat template. `input` asks for embeddings.
    """

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    input: (
        Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=MAX_INPUTS)] | None
    ) = None
    """Texts to embed, one vector each. Of the other fields none has a meaning then."""
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_LIMIT)] = 256
    sampling: Sampling = Field(default_factory=lambda: _DEFAULT_SAMPLING)
    # Frozen, so that one is enough. As a plain default pydantic would copy it deeply for each request, since it holds a
    # map: that took longer than the rest of a submit.
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=16)] = ()
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...], Field(max_length=64)] = ()
    """Tokens that end the answer, beside the model's own; they are not part of it."""
    adapter: Annotated[str, Field(pattern=ADAPTER_NAME)] | None = None
    """A LoRA adapter of the model's table, by its name there."""
    response_format: ResponseFormat | None = None
    """What the answer must look like; None is any text."""
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_CONSTRAINT_BYTES)] | None = None
    """GBNF, whose rule `root` the answer must match; not together with response_format."""

    @field_validator("messages", "input", "stop", "stop_token_ids", mode="before")
    @classmethod
    def _lists_are_welcome(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_input(self) -> JobRequest:
        if [self.prompt, self.messages, self.input].count(None) != 2:
            raise ValueError("give a prompt, messages or input, exactly one of them")
        if self.grammar is not None and self.response_format is not None:
            raise ValueError("give response_format or grammar, not both")
        if self.input is not None:
            self._only_input()
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("the prompt is empty")
        if self.messages is not None and not any(m.content.strip() for m in self.messages):
            raise ValueError("the messages are empty")
        try:
            size = self.text_bytes() + sum(len(text.encode()) for text in self.stop) + self._constraint_bytes()
        except UnicodeEncodeError:
            raise ValueError("the text is not valid Unicode (it holds a lone surrogate)") from None
        # As JSON a character has at most six bytes for each of its own in UTF-8. What may pass the bound is measured.
        if size * 6 + len(self.messages or ()) * 40 + JSON_ALLOWANCE_BYTES > MAX_BODY_BYTES:
            size = len(json.dumps(self.asked(), ensure_ascii=False).encode())
        if size > MAX_BODY_BYTES:
            raise ValueError(f"the request has {size} bytes; the limit is {MAX_BODY_BYTES}")
        return self

    def text_bytes(self) -> int:
        """Of the prompt or of all messages, in UTF-8."""
        if self.prompt is not None:
            return len(self.prompt.encode())
        if self.input is not None:
            return sum(len(text.encode()) for text in self.input)
        return sum(len(message.content.encode()) for message in self.messages or ())

    def constraint(self) -> Constraint | None:
        """What the answer must look like; None is any text."""
        if self.grammar is not None:
            return Constraint(ConstraintKind.GRAMMAR, self.grammar)
        return None if self.response_format is None else self.response_format.constraint()

    def _constraint_bytes(self) -> int:
        if self.grammar is None and self.response_format is None:
            return 0
        constraint = self.constraint()
        return 0 if constraint is None else len(constraint.text.encode())

    def _only_input(self) -> None:
        """An embedding has no tokens to sample: what would speak of them is a mistake of the producer's."""
        useless = self.asked().keys() - {"input"}
        if useless:
            raise ValueError(f"input asks for embeddings, which take no {', '.join(sorted(useless))}")

    def asked(self) -> dict[str, Any]:
        """The fields that are asked for, as JSON has them. One that is left out has its default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def digest(self) -> str:
        """32 hex digits that two requests share exactly if they ask for the same.

        A field that is not asked for does not count, so that a release with more fields knows the older requests.
        """
        return digest_of(self.asked())

    def chat(self) -> tuple[Message, ...]:
        """The conversation to render, a prompt being one user message."""
        if self.messages is not None:
            return self.messages
        return (Message(role="user", content=self.prompt or ""),)

    def cost_tokens(self) -> int:
        """What this request may take of a model, estimated without its tokenizer: four bytes of text a token."""
        prompt = -(-self.text_bytes() // 4)
        return prompt if self.input is not None else prompt + self.max_tokens

    def seed_for(self, job_id: str) -> int:
        """The seed of every attempt of this job: the one given, else one that follows from the id."""
        if self.sampling.seed is not None:
            return self.sampling.seed
        return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big")


def digest_of(asked: Mapping[str, Any], *, pinned: str = "", turn: TurnRequest | None = None) -> str:
    """Of what a request asks for, of the version that it is pinned to, and of its place in a session: 32 hex digits.

    asked: `JobRequest.asked()`, whose fields have one order, so that the same request packs to the same bytes.
    """
    if turn is not None:
        return hashlib.sha256(pack([asked, pinned, *turn.words()])).hexdigest()[:32]
    return hashlib.sha256(pack([asked, pinned] if pinned else asked)).hexdigest()[:32]


def parse_request(fields: object) -> JobRequest:
    """Validate untrusted fields into a JobRequest. Raises InvalidRequest naming the first bad field."""
    try:
        return JobRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or "request"
        raise InvalidRequest(f"{name}: {_told(first['type'], first['loc'], first['msg'])}", field=name) from None


def _told(kind: str, place: tuple[int | str, ...], message: str) -> str:
    """What is wrong with a field, where pydantic's words say little to a producer."""
    match place:
        case ("input",) if kind == "too_short":
            return "give a text; there is none"
        case ("input", int()) if kind == "string_too_short":
            return "give a text; this one is empty"
    if kind == "extra_forbidden":
        known = JobRequest.model_fields if len(place) == 1 else Message.model_fields if place[0] == "messages" else ()
        return f"there is no such field{nearest(str(place[-1]), known)}"
    return message.removeprefix("Value error, ")
