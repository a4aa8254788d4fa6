"""From a job that embeds to its vectors: the same for a worker and a replay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

from headpond.errors import EngineError, SequenceFailed
from headpond.requests import JobRequest
from headpond.wire import EMBEDDED_NUMBER_BYTES, MAX_EMBEDDING_BYTES
from headpond_workers.engines.protocol import Capability, Embedding, EmbeddingEngine, Engine, Verdict


def embed_job(engine: Engine, asked: JobRequest, proceed: Callable[[], Verdict]) -> Embedding | None:
    """One vector for each text of `asked.input`; None if `proceed` said STOP.

    Nothing is kept of an attempt that ends early: the next one computes all of it anew, and gets the same.
    Raises CapabilityMissing, PromptTooLong, SequenceFailed for more numbers than a result holds, and EngineError for
    what is no vector a text.
    """
    engine.info.require(Capability.EMBEDDINGS)
    texts = asked.input or ()
    made = cast(EmbeddingEngine, engine).embed(texts, proceed)
    if made is None:
        return None
    dimensions = len(made.vectors[0]) if made.vectors else 0
    if len(made.vectors) != len(texts) or not dimensions or any(len(each) != dimensions for each in made.vectors):
        raise EngineError(f"The engine gave {len(made.vectors)} vectors for {len(texts)} texts, or of unequal lengths.")
    size = len(texts) * dimensions * EMBEDDED_NUMBER_BYTES
    if size > MAX_EMBEDDING_BYTES:
        most = MAX_EMBEDDING_BYTES // (dimensions * EMBEDDED_NUMBER_BYTES)
        raise SequenceFailed(
            f"{len(texts)} vectors of {dimensions} numbers take {size} bytes; a result holds {MAX_EMBEDDING_BYTES}. "
            f"Send at most {most} texts in one job."
        )
    if not all(math.isfinite(sum(each)) for each in made.vectors):
        raise EngineError("The engine gave a vector that holds something other than numbers.")
    return made
