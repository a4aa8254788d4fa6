"""What a worker asks of an engine: everything above the forward pass lives outside of it.

An engine deals in token ids. Text is made from ids in one place (`headpond_workers.detokenizer`), stop
strings are found there too, and the queue, leases and streams are no concern of an engine. An engine:

- is loaded, warm and ready when its constructor returns;
- runs up to `info.slots` calls of `generate` at the same time, each in a thread of its caller;
- never emits a token that it may take back, and never emits the end token;
- asks `emit` at least once a second while it works, with no tokens during a long prefill, so that a cancel
  is heard; STOP ends that sequence alone, as soon as the engine can.

A proxy to another server has no tokenizer, and often sees text alone: it is a RelayEngine, which passes on pieces of
text, and what is said above of slots, `emit` and its verdict holds for it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from headpond.constraints import Constraint, ConstraintKind
from headpond.errors import CapabilityMissing
from headpond.jobs import FinishReason
from headpond.requests import JobRequest, Message
from headpond.sampling import Sampling


class Capability(StrEnum):
    """An ability that an engine may lack. What needs it is then refused, never done by half."""

    SEEDED = "seeded"
    """The same sequence with the same seed draws alike: alone in the engine, it gives the same tokens."""
    EXACT_RESUME = "exact_resume"
    """A sequence that goes on after k ids gives the ids that it would have given undisturbed."""
    ADAPTERS = "adapters"
    """`Sequence.adapter` names one of `EngineInfo.adapters`."""
    KV_PREFIXES = "kv_prefixes"
    """The engine is a PrefixEngine."""
    JSON_SCHEMA = "json_schema"
    """`Sequence.constraint` may ask for JSON, or for JSON of a schema; also after generated ids."""
    GRAMMAR = "grammar"
    """`Sequence.constraint` may be a GBNF grammar; also after generated ids."""
    EMBEDDINGS = "embeddings"
    """The engine is an EmbeddingEngine."""


class Verdict(Enum):
    """The answer of `emit`."""

    GO = "go"
    STOP = "stop"


NO_ADAPTERS = (
    "It names no adapters: add this one under its key `adapters` and restart the model, or leave `adapter` out of the "
    "request."
)
"""Of an engine that serves adapters, for a model that has none."""

Emit = Callable[[Seq[int]], Verdict]
"""Takes the next token ids of one sequence, shape (n,), n >= 0. Never blocks for long, never raises."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine is.

    engine: the name in the configuration. fingerprint: hex digest of all that decides its output: weights,
    tokenizer, template, engine build, settings; two engines with one fingerprint may continue each other's
    sequences. context_tokens: the most that one sequence may hold, prompt and answer together. slots: how
    many sequences run together. adapters: names that a sequence may ask for. sampling: fields of Sampling that it has
    beyond the basic ones; it refuses the others. adapter_digests: SHA-256 of each of `adapters`, in hex, in their
    order; empty if it does not say. weights_digest: SHA-256, in hex, of the files that it loaded, however it makes one
    of several; '' if it does not say. upstream_model: of a proxy, the model that its server is asked for. remedies: for
    what it lacks as its table is, and would have with another one, what the table would have to say.
    """

    engine: str
    fingerprint: str
    context_tokens: int
    slots: int
    capabilities: frozenset[Capability] = frozenset()
    adapters: tuple[str, ...] = ()
    sampling: frozenset[str] = frozenset()
    adapter_digests: tuple[str, ...] = ()
    weights_digest: str = ""
    upstream_model: str = ""
    remedies: Mapping[Capability, str] = field(default_factory=dict, compare=False)

    def require(self, capability: Capability) -> None:
        """Raises CapabilityMissing if this engine lacks it."""
        if capability not in self.capabilities:
            raise CapabilityMissing(self.engine, capability.value, remedy=self.remedies.get(capability, ""))

    def require_for(self, sequence: Sequence) -> None:
        """Raises CapabilityMissing, naming the first thing that a sequence asks for and this engine lacks."""
        if sequence.adapter is not None:
            self.require(Capability.ADAPTERS)
        if sequence.constraint is not None:
            grammar = sequence.constraint.kind is ConstraintKind.GRAMMAR
            self.require(Capability.GRAMMAR if grammar else Capability.JSON_SCHEMA)
        for name in sorted(sequence.sampling.asks_for() - self.sampling):
            raise CapabilityMissing(self.engine, name)


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence to continue.

    prompt: token ids, shape (n,), n > 0. generated: ids that earlier attempts made, shape (k,); the engine
    continues after them and does not emit them again. max_tokens: how many more ids may be emitted, >= 1.
    seed: the same in every attempt; an engine that can, replays k draws. adapter: None is the bare model.
    constraint: what the text of the answer, that of `generated` included, must look like; None is any text.
    """

    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    adapter: str | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """How a call of `generate` ended: STOP (end token), LENGTH, or CANCELLED after a verdict STOP."""

    reason: FinishReason
    details: dict[str, float] = field(default_factory=dict)
    """What the engine measured, in seconds and tokens, such as prefill_s and cached_tokens."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """vectors: shape (texts, dimensions), each of length 1. tokens: of all texts together."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int


class Engine(Protocol):
    """A loaded model. Errors: SequenceFailed ends one sequence; anything else is the engine's own failure."""

    @property
    def info(self) -> EngineInfo: ...

    def render(self, messages: Seq[Message]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for its answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text; empty for control tokens. A character may span tokens."""
        ...

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        """Run one sequence to its end. Blocks; thread-safe up to `info.slots` calls."""
        ...

    def close(self) -> None:
        """Free the device. Further calls are an error."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What an engine takes. device: `cpu`, `cuda:0`, `cuda:0,1`; empty if not known. memory_bytes: of that device, on
    all of them together; 0 if not known, and for the host's memory, which the system counts."""

    device: str = ""
    memory_bytes: int = 0


class DeviceEngine(Protocol):
    """What an engine has that knows its device. It may leave this out."""

    def device_use(self) -> DeviceUse:
        """As it is now. Called every few seconds, beside running sequences."""
        ...


class SecretEngine(Protocol):
    """What an engine has that holds secrets of its model's table. Without it a change of them needs a restart."""

    def renew_secrets(self) -> None:
        """Resolve them anew, for calls from now on. Raises ConfigError, and keeps what it has."""
        ...


EmitText = Callable[[Seq[int], Seq[str]], Verdict]
"""Takes the next pieces of an answer, and the id of each, shape (n,) each, n >= 0: the ids are UNNAMED_TOKEN where the
server does not name them. A piece may be empty. Never blocks for long, never raises."""


@dataclass(frozen=True, slots=True)
class RelayRequest:
    """One job for a RelayEngine.

    job_id: for its own memory alone. asked: what the producer wants. seed: the same in every attempt. ids, text: what
    earlier attempts made; empty where the engine begins anew.
    """

    job_id: str
    asked: JobRequest
    seed: int
    ids: tuple[int, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class RelayFinish:
    """How a call of `relay` ended, as a Finish. prompt_tokens, completion_tokens: as the server counts them, of the
    whole answer; None if it does not say."""

    reason: FinishReason
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@runtime_checkable
class RelayEngine(Protocol):
    """A model that another server runs.

    Errors: SequenceFailed, PromptTooLong and CapabilityMissing end one job; UpstreamClosed says that the server serves
    nobody, JobPutBack that it failed this job for now: neither is the job's fault. Anything else is a failure that may
    be.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def anew(self) -> str:
        """Why a job cannot go on after the tokens that it has, and begins anew; '' if it can go on."""
        ...

    def relay(self, request: RelayRequest, emit: EmitText) -> RelayFinish:
        """Run one job to its end. Blocks; thread-safe up to `info.slots` calls."""
        ...

    def probe(self) -> None:
        """Ask whether the server serves this model now. Blocks. Raises UpstreamClosed."""
        ...

    def renew_secrets(self) -> None:
        """Read the secrets that the table refers to anew. Raises ConfigError, and keeps the old ones then."""
        ...

    def close(self) -> None:
        """End what runs with an error, and close all connections. Further calls are an error."""
        ...


class PrefixCopy(Protocol):
    """Keys and values that the device need not hold any more, and that no file holds yet. Used once."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Whose they are, shape (n,)."""
        ...

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. In any thread; the engine goes on. Raises EngineError."""
        ...

    def discard(self) -> None:
        """Let go of them."""
        ...


@runtime_checkable
class PrefixEngine(Engine, Protocol):
    """An engine with Capability.KV_PREFIXES: keys and values of a prompt's first tokens, kept in a file."""

    def prefix_fingerprint(self, adapter: str | None) -> str | None:
        """Digest, 64 hex digits, of all that decides keys and values of given ids: files with another one are refused.
        None: with this adapter nothing can be loaded now."""
        ...

    def held_prefix(self, ids: Seq[int], *, adapter: str | None = None) -> int:
        """How many of these ids, from the first on, a sequence would find on the device now, without a file."""
        ...

    def take_prefix(self, ids: Seq[int], *, adapter: str | None = None) -> PrefixCopy | None:
        """The first step of `save_prefix`, as short as it can be: called by the thread whose sequence just ended."""
        ...

    def save_prefix(self, ids: Seq[int], path: Path, *, adapter: str | None = None) -> int:
        """Write what the device still holds of these ids, shape (n,); return how many of them the file covers.

        0: nothing is held, and there is no file. `path` is whole or absent, also after a kill.
        """
        ...

    def load_prefix(self, path: Path) -> int:
        """Put a file's keys and values onto the device; return how many tokens they cover.

        Raises PrefixRefused, and changes nothing, for a file that is damaged or of another model.
        """
        ...


class EmbeddingEngine(Engine, Protocol):
    """An engine with Capability.EMBEDDINGS."""

    def embed(self, texts: Seq[str], proceed: Callable[[], Verdict]) -> Embedding | None:
        """One vector for each text. Blocks; thread-safe up to `info.slots` calls.

        proceed: asked at least once a second, and between texts; after STOP the answer is None.
        Raises PromptTooLong for a text that the model cannot hold.
        """
        ...
