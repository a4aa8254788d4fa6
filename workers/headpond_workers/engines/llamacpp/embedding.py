"""llama.cpp, through xllamacpp, as an engine that embeds: a model of its own, loaded for nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

from headpond.errors import CapabilityMissing, EngineError, PromptTooLong
from headpond.tables import LlamaCppModel
from headpond_workers.engines.formats.weights_digest import DigestOf, digest_of
from headpond_workers.engines.llamacpp.model import LlamaModel
from headpond_workers.engines.llamacpp.server import error_text
from headpond_workers.engines.protocol import Capability, Embedding, Emit, Finish, Sequence, Verdict

_ASK_EVERY_S = 0.5
_GENERATES = 'Ask it with `headpond embed`, or serve the weights under another name without task = "embed".'


class LlamaCppEmbedder(LlamaModel):
    """One GGUF model that embeds texts. Thread-safe; runs up to `info.slots` calls together."""

    def __init__(
        self, settings: LlamaCppModel, path: Path, *, threads: int | None = None, digest_of: DigestOf = digest_of
    ) -> None:
        """As `LlamaModel`."""
        can = frozenset({Capability.EMBEDDINGS})
        super().__init__(settings, path, threads=threads, capabilities=can, sampling=frozenset(), digest_of=digest_of)
        # One text at a time. Beside another of other length llama.cpp computes a text in two steps, and pools the
        # second one alone: another vector, without a word.
        self._at_work = ThreadPoolExecutor(1, thread_name_prefix="embedding")

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        """Always CapabilityMissing."""
        raise CapabilityMissing(self.info.engine, "generation", remedy=_GENERATES)

    def embed(self, texts: Seq[str], proceed: Callable[[], Verdict]) -> Embedding | None:
        def proceed_while_open() -> Verdict:
            self.open_server()
            return proceed()

        # All are measured first: a text that is too long is refused before any work is done.
        ids = [self.tokenise(text, add_special=True, parse_special=False) for text in texts]
        for one in ids:
            if len(one) > self.info.context_tokens:
                raise PromptTooLong(prompt_tokens=len(one), context_tokens=self.info.context_tokens)
        vectors: list[tuple[float, ...]] = []
        with self.slot(proceed_while_open) as slot:
            for one in ids:
                if slot is None or proceed_while_open() is Verdict.STOP:
                    return None
                vector = self._embed_asking(one, proceed_while_open)
                if vector is None:
                    return None
                vectors.append(vector)
        return Embedding(tuple(vectors), sum(map(len, ids)))

    def close(self) -> None:
        super().close()
        self._at_work.shutdown()

    def _embed_asking(self, ids: Seq[int], proceed: Callable[[], Verdict]) -> tuple[float, ...] | None:
        """None after a verdict STOP. llama.cpp cannot be interrupted, so the text at hand is waited for then."""
        vector = self._at_work.submit(self._embed, ids)
        while True:
            try:
                return vector.result(_ASK_EVERY_S)
            except NotYet:
                if proceed() is Verdict.STOP:
                    vector.exception()
                    return None

    def _embed(self, ids: Seq[int]) -> tuple[float, ...]:
        answer = self.open_server().embed(ids)
        if not isinstance(answer, dict) or "data" not in answer:
            raise EngineError(f"llama.cpp cannot embed a text of {len(ids)} tokens: {error_text(answer)}")
        vector = [float(value) for value in answer["data"][0]["embedding"]]
        length = math.sqrt(math.fsum(value * value for value in vector))
        if not math.isfinite(length) or length == 0:
            raise EngineError(f"llama.cpp embedded a text of {len(ids)} tokens as a vector without a length.")
        return tuple(value / length for value in vector)
