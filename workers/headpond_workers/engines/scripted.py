"""The reference engine: the tokens of an answer follow from (prompt, seed) alone, at a set speed.

It runs as an engine on a device does: one loop makes a step for all running sequences, each step gives each of
them one token. Since token i depends on i and not on the tokens before, a resumed sequence goes on exactly as it
would have. Some characters span two tokens. With `crash_at` the process kills itself (SIGKILL) at a chosen point.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from headpond.errors import (
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    ModelFileError,
    PromptTooLong,
    SequenceFailed,
)
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.tables import ScriptedModel
from headpond_workers.engines.protocol import (
    Capability,
    DeviceUse,
    Embedding,
    Emit,
    EngineInfo,
    Finish,
    Sequence,
    Verdict,
)
from headpond_workers.engines.scripted_version import LoadFailure, ScriptedVersion, read_scripted_version

_SYLLABLES = ("ka", "lo", "mi", "ren", "sa", "to", "vu", "wi")
_WORDS = tuple(f" {a}{b}{c}".encode() for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES)
_FIRST_WORD = 256
_HALF_A, _HALF_B = _FIRST_WORD + len(_WORDS), _FIRST_WORD + len(_WORDS) + 1
_VOCABULARY = _HALF_B + 1
_EMOJI = "\N{WATER WAVE}".encode()
_SPAN_EVERY = 17
"""One token in so many begins a character that the next one ends."""
_ASK_S = 0.05


@dataclass(eq=False, slots=True)
class _Running:
    """One call of generate. length: tokens of the whole answer. most: of this attempt."""

    sequence: Sequence
    emit: Emit
    key: bytes
    length: int
    most: int
    position: int
    prefill_steps: int
    made: int = 0
    finish: Finish | None = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


class ScriptedEngine:
    """An engine without a model; see the module. Thread-safe up to `slots` calls of generate."""

    def __init__(self, settings: ScriptedModel) -> None:
        """Raises EngineUnavailable, EngineOutOfMemory or ModelFileError where the version says so, see
        `scripted_version`."""
        version = _version_of(settings)
        changes = {"answer_tokens": version.answer_tokens, "tokens_per_s": version.tokens_per_s}
        settings = settings.model_copy(update={key: value for key, value in changes.items() if value is not None})
        self._settings, self._salt = settings, version.salt.encode()
        if settings.crash_at == "load":
            _die()
        embeds = f":{settings.embed_dimensions}" if settings.embed_dimensions else ""
        salt = f":salt={version.salt}" if version.salt else ""
        digest = hashlib.sha256(f"scripted-1:{settings.answer_tokens}:{settings.context_tokens}{embeds}{salt}".encode())
        capabilities = {Capability.SEEDED, Capability.EXACT_RESUME}
        if settings.embed_dimensions:
            capabilities.add(Capability.EMBEDDINGS)
            # Only then: an engine without the capability has no such method.
            self.embed = self._embed
        self._info = EngineInfo(
            "scripted",
            digest.hexdigest(),
            settings.context_tokens,
            settings.slots,
            frozenset(capabilities),
            weights_digest=hashlib.sha256(f"scripted-1:{settings.answer_tokens}{embeds}{salt}".encode()).hexdigest(),
            remedies={Capability.EMBEDDINGS: "Write embed_dimensions = 8 there, or another number from 1."},
        )
        self._changed = threading.Condition()
        self._running: list[_Running] = []
        self._closed = False
        self._loop = threading.Thread(target=self._run, name="scripted-engine", daemon=True)
        self._loop.start()

    @property
    def info(self) -> EngineInfo:
        return self._info

    def render(self, messages: Seq[Message]) -> list[int]:
        return self.encode("\n".join(f"<{m.role}>{m.content}" for m in messages) + "\n<assistant>")

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < _FIRST_WORD:
            return bytes([token_id])
        if token_id == _HALF_A:
            return _EMOJI[:2]
        if token_id == _HALF_B:
            return _EMOJI[2:]
        return _WORDS[token_id - _FIRST_WORD]

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        settings = self._settings
        self._check(sequence)
        room = settings.context_tokens - len(sequence.prompt) - len(sequence.generated)
        if room <= 0:
            return Finish(FinishReason.LENGTH)
        prompt = bytes(i for i in sequence.prompt if i < _FIRST_WORD)
        seed = sequence.seed if sequence.sampling.temperature > 0 else 0
        key = hashlib.sha256(prompt + seed.to_bytes(8, "big") + self._salt).digest()
        prefill_s = (
            (len(sequence.prompt) + len(sequence.generated)) / settings.prefill_tokens_per_s
            if settings.prefill_tokens_per_s
            else 0.0
        )
        if settings.crash_at == "prefill" and self._crashes(sequence):
            _die()
        running = _Running(
            sequence,
            emit,
            key,
            settings.answer_tokens or 40 + int.from_bytes(key[:4], "big") % 361,
            min(sequence.max_tokens, room),
            len(sequence.generated),
            math.ceil(prefill_s * settings.tokens_per_s),
        )
        with self._changed:
            if self._closed:
                raise EngineError("The engine is closed.")
            self._running.append(running)
            self._changed.notify()
        running.done.wait()
        if running.error is not None:
            raise running.error
        if running.finish is None:
            raise EngineError("The engine is closed.")
        if settings.crash_at == "end" and self._crashes(sequence):
            _die()
        return running.finish

    def _embed(self, texts: Seq[str], proceed: Callable[[], Verdict]) -> Embedding | None:
        """A vector that follows from the text alone, at `prefill_tokens_per_s`. One token a byte."""
        for text in texts:
            if (tokens := len(text.encode())) > self._settings.context_tokens:
                raise PromptTooLong(prompt_tokens=tokens, context_tokens=self._settings.context_tokens)
        vectors = []
        for text in texts:
            if not self._read(len(text.encode()), proceed):
                return None
            vectors.append(_unit_vector(text, self._settings.embed_dimensions or 0))
        return Embedding(tuple(vectors), sum(len(text.encode()) for text in texts))

    def _read(self, tokens: int, proceed: Callable[[], Verdict]) -> bool:
        """Take as long as a prompt of so many tokens would. False if it is not to go on."""
        rate = self._settings.prefill_tokens_per_s
        until = time.monotonic() + (tokens / rate if rate else 0.0)
        while True:
            if self._closed:
                raise EngineError("The engine is closed.")
            if proceed() is Verdict.STOP:
                return False
            if (left_s := until - time.monotonic()) <= 0:
                return True
            time.sleep(min(left_s, _ASK_S))

    def device_use(self) -> DeviceUse:
        return DeviceUse("cpu")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._loop.join()

    def _check(self, sequence: Sequence) -> None:
        self._info.require_for(sequence)
        strange = [i for i in (*sequence.prompt, *sequence.generated) if not 0 <= i < _VOCABULARY]
        if strange:
            raise SequenceFailed(f"{strange[0]} is no token of the scripted engine, which has {_VOCABULARY}.")
        if len(sequence.prompt) >= self._settings.context_tokens:
            raise PromptTooLong(prompt_tokens=len(sequence.prompt), context_tokens=self._settings.context_tokens)

    def _run(self) -> None:
        period_s = 1 / self._settings.tokens_per_s
        next_step = time.monotonic()
        while True:
            with self._changed:
                if not self._running and not self._closed:
                    self._changed.wait_for(lambda: self._running or self._closed)
                    next_step = time.monotonic()
                if self._closed:
                    for running in self._running:
                        running.done.set()
                    return
                batch = list(self._running)
            next_step += period_s
            delay_s = next_step - time.monotonic()
            if delay_s > 0:
                time.sleep(delay_s)
            else:
                next_step = time.monotonic()  # A device that is late does not hurry afterwards.
            for running in batch:
                try:
                    over = self._step(running)
                except Exception as error:  # noqa: BLE001 - the listener's own: it goes to its caller, others go on
                    running.error, over = error, True
                if over:
                    with self._changed:
                        self._running.remove(running)
                    running.done.set()

    def _step(self, running: _Running) -> bool:
        """One step of one sequence. True when it is done."""
        if running.prefill_steps > 0:
            running.prefill_steps -= 1
            if running.emit(()) is Verdict.STOP:
                running.finish = Finish(FinishReason.CANCELLED)
            return running.finish is not None
        if running.position >= running.length:
            running.finish = Finish(FinishReason.STOP)
            return True
        verdict = running.emit((_token(running.key, running.position),))
        running.position += 1
        running.made += 1
        settings = self._settings
        if settings.crash_at == "token" and running.made > settings.crash_token and self._crashes(running.sequence):
            _die()
        if verdict is Verdict.STOP:
            running.finish = Finish(FinishReason.CANCELLED)
        elif running.made >= running.most:
            running.finish = Finish(FinishReason.LENGTH)
        return running.finish is not None

    def _crashes(self, sequence: Sequence) -> bool:
        return self._settings.crash_prompt.encode() in bytes(i for i in sequence.prompt if i < _FIRST_WORD)


def _version_of(settings: ScriptedModel) -> ScriptedVersion:
    """What stands for weights; nothing where the table names none. Fails to load as it says."""
    if settings.path is None and settings.source is None:
        return ScriptedVersion()
    path = settings.local_path
    version = read_scripted_version(path)
    match version.fail:
        case LoadFailure.LOAD:
            raise EngineUnavailable(f"The scripted engine cannot load {path}: it says fail = load.")
        case LoadFailure.OUT_OF_MEMORY:
            raise EngineOutOfMemory(f"The scripted device has no memory left for {path}: it says fail = oom.")
        case LoadFailure.TEMPLATE:
            raise ModelFileError(f"The chat template of {path} is refused: it says fail = template.")
        case LoadFailure.CRASH:
            _die()
    return version


def _token(key: bytes, position: int) -> int:
    if position > 0 and _draw(key, position - 1) % _SPAN_EVERY == 0 and position % 2 == 1:
        return _HALF_B
    draw = _draw(key, position)
    if draw % _SPAN_EVERY == 0 and position % 2 == 0:
        return _HALF_A
    return _FIRST_WORD + draw % len(_WORDS)


def _unit_vector(text: str, dimensions: int) -> tuple[float, ...]:
    key = hashlib.sha256(text.encode()).digest()
    numbers = [_draw(key, position) / (1 << 31) - 1 for position in range(dimensions)]
    length = math.hypot(*numbers) or 1.0
    return tuple(number / length for number in numbers)


def _draw(key: bytes, position: int) -> int:
    return int.from_bytes(hashlib.blake2b(position.to_bytes(8, "big"), key=key, digest_size=4).digest(), "big")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
