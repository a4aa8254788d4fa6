"""Engines that cannot load or run, and files that they cannot have."""

from __future__ import annotations

from typing import ClassVar

from headpond.errors.base import HeadpondError


class EngineError(HeadpondError):
    """An engine could not do what was asked."""


class EngineUnavailable(EngineError):
    """The engine or its model could not be loaded: what is missing, and how to get it."""


class EngineOutOfMemory(EngineError):
    """The device has no memory left for this sequence. The engine is clear again, and its neighbours go on."""

    retry = True


class EngineBroken(EngineError):
    """The engine cannot go on in this process. Its jobs are parked; a new process may serve them."""

    retry = True


class UpstreamClosed(EngineError):
    """The server behind a proxy serves nobody just now, and no job is to blame: jobs wait until it does again.

    needs_operator: waiting will not help, such as with a wrong key.
    """

    retry = True

    def __init__(self, message: str, *, needs_operator: bool = False) -> None:
        super().__init__(message)
        self.needs_operator = needs_operator


class JobPutBack(EngineError):
    """The server behind a proxy failed one job for now: it broke off amid an answer, or is too busy for this one. The
    job goes back to its queue, and nobody is to blame."""

    retry = True


class CapabilityMissing(EngineError):
    """An ability that an engine of this kind does not have, or not with this model's table. remedy: what the table
    would have to say."""

    _MEANING: ClassVar[dict[str, str]] = {
        "seeded": "repeat an answer from its seed",
        "exact_resume": "promise the identical continuation after a restart",
        "adapters": "serve adapters",
        "kv_prefixes": "store keys and values of a prompt",
        "json_schema": "bind an answer to JSON or to a schema",
        "grammar": "bind an answer to a grammar",
        "embeddings": "embed texts",
        "generation": "generate text: it is loaded to embed",
    }
    """A name that is not here is one of `Sampling`."""

    def __init__(self, engine: str, capability: str, *, remedy: str = "") -> None:
        what = f"The engine '{engine}' cannot {self._MEANING.get(capability, f'sample with {capability}')}"
        super().__init__(
            f"{what} with this model's table. {remedy}"
            if remedy
            else f"{what}. Leave that out of the request, or serve the model with an engine that can."
        )
        self.engine = engine
        self.capability = capability


class PrefixRefused(EngineError):
    """A file of keys and values was not loaded: it is damaged, or was made by another model. Prefill instead."""


class PromptTooLong(EngineError):
    """The prompt leaves no room for an answer in the model's context."""

    def __init__(self, *, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"The prompt has {prompt_tokens} tokens, and the model's context holds {context_tokens}, answer included. "
            "Shorten the prompt, or raise context_tokens in the model's table."
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class SequenceFailed(EngineError):
    """The engine gave up on one sequence; its neighbours go on."""


class ModelFileError(HeadpondError):
    """Weights are missing, altered, or in a format that headpond refuses to load."""
