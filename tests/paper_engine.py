"""A PrefixEngine without a model: its keys and values follow from the token ids, and its files are real ones."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond_workers.engines.exllamav2.prefix_file import TensorLayout, read_prefix_file, write_prefix_file
from headpond_workers.engines.prefix_header import Part, digest_of_parts
from headpond_workers.engines.protocol import Capability, Emit, EngineInfo, Finish, PrefixCopy, Sequence

TOKEN_BYTES = 256
LAYOUT = [TensorLayout("key_states.0", "U8", (TOKEN_BYTES,))]


def states_of(ids: Seq[int]) -> bytes:
    return b"".join(hashlib.sha256(str(i).encode()).digest() * (TOKEN_BYTES // 32) for i in ids)


@dataclass(frozen=True)
class PaperCopy:
    ids: tuple[int, ...]
    fingerprint: dict[str, Part]

    def write(self, path: Path) -> None:
        states = [memoryview(states_of(self.ids))]
        write_prefix_file(path, fingerprint=self.fingerprint, ids=self.ids, layout=LAYOUT, tensors=states)

    def discard(self) -> None:
        pass


@dataclass
class PaperEngine:
    """held: what its device was given. holds: tokens that it has without. forgetful: it takes a file, and computes all
    the same."""

    weights: str = "w"
    forgetful: bool = False
    holds: int = 0
    held: list[tuple[int, ...]] = field(default_factory=list)
    loads: int = 0
    computed: threading.Event = field(default_factory=threading.Event)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("paper", "f" * 64, 1 << 20, 4, frozenset({Capability.KV_PREFIXES}))

    def fingerprint(self, adapter: str | None) -> dict[str, Part]:
        return {"engine": "paper 1", "weights_digest": self.weights, "adapter": adapter}

    def prefix_fingerprint(self, adapter: str | None) -> str | None:
        return digest_of_parts(self.fingerprint(adapter))

    def held_prefix(self, ids: Seq[int], *, adapter: str | None = None) -> int:
        return self.holds

    def take_prefix(self, ids: Seq[int], *, adapter: str | None = None) -> PrefixCopy | None:
        return PaperCopy(tuple(ids[:-1]), self.fingerprint(adapter))

    def save_prefix(self, ids: Seq[int], path: Path, *, adapter: str | None = None) -> int:
        PaperCopy(tuple(ids[:-1]), self.fingerprint(adapter)).write(path)
        return len(ids) - 1

    def load_prefix(self, path: Path) -> int:
        stored = read_prefix_file(path, fingerprint=self.fingerprint(None), layout=LAYOUT, max_tokens=1 << 20)
        assert bytes(stored.data[8 * len(stored.ids) :]) == states_of(stored.ids)
        self.loads += 1
        self.held.append(stored.ids)
        return len(stored.ids)

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        """Computes at 1000 tokens a second what it does not hold, and answers with ten tokens."""
        ids = (*sequence.prompt, *sequence.generated)
        cached = 0
        for held in [] if self.forgetful else self.held:
            same = next(
                (n for n, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), min(len(held), len(ids))
            )
            cached = max(cached, min(same, len(ids) - 1))
        self.held.clear()
        emit(range(10))
        details = {"cached_tokens": float(cached), "prefill_s": (len(ids) - cached) / 1000}
        return Finish(FinishReason.STOP, details)

    def render(self, messages: Seq[Message]) -> list[int]:
        return [ord(letter) for message in messages for letter in message.content]

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def close(self) -> None:
        pass
