"""Turns of conversations on a PrefixEngine with stored prefixes, as a job takes them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headpond.sampling import Sampling
from headpond.tables import LlamaCppModel
from headpond_workers.engines.protocol import PrefixEngine, Sequence, Verdict
from headpond_workers.prefixes.counts import Counts
from headpond_workers.prefixes.folders import fingerprint_folders, kv_folder, prefixes_in
from headpond_workers.prefixes.local import LocalPrefixes
from headpond_workers.prefixes.stored_prefixes import StoredPrefixes
from headpond_workers.storage.blobs import Blobs

MODEL = "chat"


@dataclass
class Host:
    """A machine with one worker of the model. ids of an answer are those that the engine made."""

    engine: PrefixEngine
    state_folder: Path
    prefixes: StoredPrefixes

    @property
    def kv(self) -> Path:
        return kv_folder(self.state_folder)

    def turn(self, prompt: Seq[int], *, new: int = 8, adapter: str | None = None) -> tuple[tuple[int, ...], int]:
        """The answer's ids, and how many tokens of the prompt were not computed. What is kept of it is written."""
        made: list[int] = []

        def emit(ids: Seq[int]) -> Verdict:
            made.extend(ids)
            return Verdict.GO

        sequence = Sequence(tuple(prompt), (), new, Sampling(temperature=0.0), 7, adapter)
        loaded = self.prefixes.load(sequence, lambda: True)
        finish = self.engine.generate(sequence, emit)
        self.prefixes.note(sequence, finish, loaded)
        self.prefixes.keep(sequence, made)
        return tuple(made), int(finish.details["cached_tokens"])

    def files(self) -> list[Path]:
        return [found.path for folder in fingerprint_folders(self.kv, MODEL) for found in prefixes_in(folder)]

    def counts(self, adapter: str | None = None) -> Counts:
        shelf = self.prefixes._shelf(adapter)
        assert shelf is not None
        return shelf.counts.now

    def local(self) -> LocalPrefixes:
        shelf = self.prefixes._shelf(None)
        assert shelf is not None
        return shelf.local

    def look(self) -> None:
        """At storage, now."""
        shelf = self.prefixes._shelf(None)
        assert shelf is not None
        assert shelf.remote is not None
        shelf.remote.look()


def host_of(
    engine: PrefixEngine, state_folder: Path, *, blobs: Blobs | None = None, instance: str = "chat-0", **table: Any
) -> Host:
    """Its threads run; `host.prefixes.stop()` ends them."""
    kv = "local" if blobs is None else "storage"
    settings = LlamaCppModel(engine="llamacpp", path=Path("x.gguf"), **{"kv": kv, "kv_min_tokens": 64, **table})
    prefixes = StoredPrefixes(
        engine, kv_folder(state_folder), model=MODEL, instance=instance, table=settings, blobs=blobs
    )
    prefixes.start()
    return Host(engine, state_folder, prefixes)
