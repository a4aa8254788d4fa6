"""What the conformance suite asks of an engine, and how it runs a sequence on one.

`Attempt` listens as a worker does: ids go through the real Detokenizer, which answers for stop strings and stop
tokens. Whatever is asked, `Attempt.run` holds the engine to what is true of every sequence.
"""

from __future__ import annotations

import codecs
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headpond.constraints import Constraint
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond_workers.detokenizer import Detokenizer, Released
from headpond_workers.engines.protocol import Capability, Engine, Sequence, Verdict

GREEDY = Sampling(temperature=0.0)
DEADLINE_S = 120.0
SEED = 7
TEXTS = [
    "plain words, and  two spaces",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3002\u6f22\u5b57\u3068\u304b\u306a",
    "\U0001f389\U0001f9d1\u200d\U0001f680\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f1e9\U0001f1ea",
    "e\u0301 a\u0308\u0323 \u0930\u094d\u0930\u093f \u0e01\u0e33\u0e49",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\x00\x01\t\r\n\x7f\x85\ufeff\ufffd\U0010ffff",
    "<|im_start|>user <|endoftext|> <s> </s>",
    " leading and trailing ",
]
"""What a tokenizer must give back byte for byte."""


@dataclass(frozen=True)
class Subject:
    """An engine under test, with prompts that it answers in a known way.

    load: make the engine; given a folder that is this subject's own, kept between calls. May skip the test.
    ends: a user's message; the greedy answer ends by itself.
    runs_on: a user's message; the greedy answer has 40 tokens and more.
    multibyte: plain text; the greedy continuation holds characters of several tokens, and is so certain that
    rounding does not change it.
    hot: a temperature at which what is drawn depends on the seed.
    slowed: while it is entered, prefill takes so long that the engine must ask amid it.
    """

    name: str
    load: Callable[[Path], Engine]
    capabilities: frozenset[Capability]
    slots: int
    context_tokens: int
    ends: str
    runs_on: str
    multibyte: str
    adapters: tuple[str, ...] = ()
    hot: float = 1.0
    slowed: Callable[[], AbstractContextManager[object]] = nullcontext

    def __str__(self) -> str:
        return self.name


class Attempt:
    """One call of generate, and all that it emits.

    raw: every id that the engine emitted. calls: how many ids each call of emit brought. ids, pieces: what a
    worker would have shown. until: asked after each call of emit; True answers STOP.
    """

    def __init__(
        self,
        engine: Engine,
        sequence: Sequence,
        *,
        stop: Seq[str] = (),
        stop_ids: Iterable[int] = (),
        until: Callable[[Attempt], bool] = lambda attempt: False,
    ) -> None:
        self.raw: list[int] = []
        self.calls: list[int] = []
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.begun = threading.Event()
        self.finish: FinishReason | None = None
        self._engine = engine
        self._sequence = sequence
        self._until = until
        self._text = Detokenizer(engine.token_bytes, stop=stop, stop_ids=stop_ids, prior=sequence.generated)
        self._told_to_stop = False
        self._calls_after_stop = 0

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def run(self) -> Attempt:
        """Run it to its end, as generation.py does, and check what holds of any sequence."""
        finish = self._engine.generate(self._sequence, self._emit)
        assert self._calls_after_stop == 0, "nothing is said after a verdict STOP"
        present = len(self._sequence.prompt) + len(self._sequence.generated)
        most = min(self._sequence.max_tokens, self._engine.info.context_tokens - present)
        if self._told_to_stop:
            assert finish.reason is FinishReason.CANCELLED
        else:
            assert finish.reason in (FinishReason.STOP, FinishReason.LENGTH)
            self._show(self._text.flush())
            assert self.ids == self.raw
        assert len(self.raw) <= most
        assert finish.reason is not FinishReason.LENGTH or len(self.raw) == most
        assert all(isinstance(value, (int, float)) for value in finish.details.values())
        self.finish = FinishReason.STOP if self._text.stopped else finish.reason
        return self

    def _emit(self, ids: Seq[int]) -> Verdict:
        if self._told_to_stop:
            self._calls_after_stop += 1
        self.calls.append(len(ids))
        self.raw.extend(ids)
        self._show(self._text.feed(ids))
        if self.raw:
            self.begun.set()
        self._told_to_stop |= self._text.stopped or self._until(self)
        return Verdict.STOP if self._told_to_stop else Verdict.GO

    def _show(self, released: Released) -> None:
        self.ids.extend(released.ids)
        self.pieces.extend(released.pieces)


def prompt_of(engine: Engine, message: str) -> tuple[int, ...]:
    """A user's message in the model's chat template."""
    return tuple(engine.render([Message(role="user", content=message)]))


def long_prompt(engine: Engine, message: str, *, tokens: int, begin: int = 0) -> tuple[int, ...]:
    """A prompt of exactly so many tokens, at whose end stands the message in its template.

    begin: at which token of a repeated sentence it begins; each makes another prompt.
    """
    end = prompt_of(engine, message)
    filler = engine.encode("Rivers bend, and carry what they loosen. ")
    times = -(-(tokens + begin) // len(filler))
    prompt = (*(filler * times)[begin : begin + tokens - len(end)], *end)
    assert len(prompt) == tokens, "the context of a subject holds its messages"
    return prompt


def sequence(
    prompt: Seq[int],
    *,
    generated: Seq[int] = (),
    max_tokens: int = 24,
    temperature: float = 0.0,
    seed: int = SEED,
    adapter: str | None = None,
    constraint: Constraint | None = None,
    **sampling: Any,
) -> Sequence:
    """sampling: fields of Sampling beside the temperature."""
    chosen = Sampling(temperature=temperature, **sampling)
    return Sequence(tuple(prompt), tuple(generated), max_tokens, chosen, seed, adapter, constraint)


def text_of(engine: Engine, ids: Seq[int]) -> str:
    """The characters that these ids complete, without help of the Detokenizer."""
    data = b"".join(map(engine.token_bytes, ids))
    return codecs.utf_8_decode(data, "replace", False)[0]


def ends_whole(engine: Engine, ids: Seq[int]) -> bool:
    """Whether no character is left incomplete behind these ids."""
    return text_of(engine, ids).encode() == b"".join(map(engine.token_bytes, ids))
