"""llama.cpp with keys and values that outlive a slot: in files that another process can load.

    generate ends -> its slot is left alone, as long as there is another -> take_prefix copies what it holds
    load_prefix   -> a free slot holds a file's keys and values           -> generate takes that slot

llama.cpp itself writes and reads the files of slots, in a folder that nobody else looks into; while it does so its
other slots wait, some milliseconds. Where a slot was taken by another sequence meanwhile, nothing is saved, or the
prompt is prefilled.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import secrets
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

from headpond.errors import EngineError, PrefixRefused
from headpond.tables import LlamaCppModel
from headpond_workers.engines.formats.weights_digest import DigestOf, digest_of
from headpond_workers.engines.llamacpp.engine import LlamaCppEngine
from headpond_workers.engines.llamacpp.slot_file import read_slot_file, slot_ids, write_slot_file
from headpond_workers.engines.llamacpp.slot_pool import Holding, Slot, Worth, least_missed
from headpond_workers.engines.prefix_header import Part, digest_of_parts, read_fingerprint
from headpond_workers.engines.protocol import PrefixCopy, Sequence

log = logging.getLogger(__name__)

_SLOT_WAIT_S = 1.0
"""For a slot to load into: at most one sequence a slot runs, so one is free but for a moment."""
_MOST = 1 << 30


class LlamaCppPrefixEngine(LlamaCppEngine):
    """A PrefixEngine. Its requests do not ask for a prompt's cache, but where a file was loaded for them."""

    def __init__(
        self,
        settings: LlamaCppModel,
        path: Path,
        *,
        slot_folder: Path,
        threads: int | None = None,
        digest_of: DigestOf = digest_of,
    ) -> None:
        """As `LlamaModel`. slot_folder: of this engine alone; nobody else may read it."""
        super().__init__(settings, path, threads=threads, digest_of=digest_of, slot_folder=slot_folder)
        self._folder = slot_folder
        self._kept_tokens = settings.kv_min_tokens
        self._fingerprint: dict[str, Part] = {
            "weights_digest": self.info.weights_digest,
            "engine": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
            "cache": f"{settings.cache_type_k} {settings.cache_type_v}",
            "flash_attention": settings.flash_attention,
            "rope": f"{settings.rope_scaling}, base {settings.rope_freq_base}, scale {settings.rope_freq_scale}",
            "gpu": settings.gpu_layers > 0,
        }

    def prefix_fingerprint(self, adapter: str | None) -> str | None:
        return digest_of_parts(self._kv_fingerprint(adapter))

    def held_prefix(self, ids: Seq[int], *, adapter: str | None = None) -> int:
        """None: a sequence uses what was loaded for it, and no cache of an earlier one."""
        return 0

    def take_prefix(self, ids: Seq[int], *, adapter: str | None = None) -> PrefixCopy | None:
        """See PrefixEngine. Other slots wait while llama.cpp writes, 23 kB a token of a small model in 10 ms per 1000
        tokens."""
        asked = tuple(ids)

        def worth(slot: Slot) -> int:
            return len(slot.ids) if slot.adapter == adapter and asked[: len(slot.ids)] == slot.ids else 0

        slot = self.slots.take_held(Holding.UNSAVED, worth)
        if slot is None:
            return None
        body = self._new_file()
        try:
            self.open_server().save_slot(slot.number, body.name)
            body.chmod(0o600)
            with body.open("rb") as file:
                held = slot_ids(file)
        except (OSError, ValueError) as error:
            body.unlink(missing_ok=True)
            raise EngineError(f"llama.cpp's file of a slot cannot be read: {error}. Its prompt is not kept.") from error
        except EngineError:
            body.unlink(missing_ok=True)
            raise
        finally:
            slot.hold(Holding.NOTHING)
            self.slots.put(slot)
        if common_tokens(held, asked) < len(slot.ids) or not held:
            # What is there is not what was asked for.
            body.unlink()
            return None
        return _SlotCopy(held, body, self._kv_fingerprint(adapter))

    def save_prefix(self, ids: Seq[int], path: Path, *, adapter: str | None = None) -> int:
        """See PrefixEngine."""
        taken = self.take_prefix(ids, adapter=adapter)
        if taken is None:
            return 0
        taken.write(path)
        return common_tokens(taken.ids, ids)

    def load_prefix(self, path: Path) -> int:
        """See PrefixEngine. The next sequence that begins with these tokens and has their adapter goes on from them."""
        adapter = read_fingerprint(path).get("adapter")
        if not (adapter is None or (isinstance(adapter, str) and adapter in self.adapters)):
            raise PrefixRefused(f"{path} was not loaded: this model has no such adapter as it names. Prefill instead.")
        body = self._new_file()
        ids = read_slot_file(
            path, fingerprint=self._kv_fingerprint(adapter), max_tokens=self.info.context_tokens, into=body
        )
        try:
            return self._restore(path, body, ids, adapter)
        finally:
            body.unlink(missing_ok=True)

    def worth_for(self, sequence: Sequence) -> Worth:
        ids = (*sequence.prompt, *sequence.generated)

        def worth(slot: Slot) -> int:
            if slot.holding is Holding.LOADED and slot.adapter == sequence.adapter:
                return common_tokens(slot.ids, ids) or -_MOST
            return least_missed(slot) - (_MOST if slot.holding is Holding.LOADED else 1)

        return worth

    def begin_in(self, slot: Slot, sequence: Sequence, lora: object) -> bool:
        ids = (*sequence.prompt, *sequence.generated)
        loaded = slot.holding is Holding.LOADED and slot.adapter == sequence.adapter and slot.ids[:1] == ids[:1]
        slot.lora = lora
        # A short one is not asked for, and should keep no other sequence from this slot.
        slot.hold(Holding.UNSAVED if len(ids) >= self._kept_tokens else Holding.NOTHING, ids, sequence.adapter)
        return loaded

    def _restore(self, path: Path, body: Path, ids: tuple[int, ...], adapter: str | None) -> int:
        slot = self.slots.take(_SLOT_WAIT_S)
        if slot is None:
            return 0
        slot.hold(Holding.NOTHING)
        try:
            server, lora = self.open_server(), self.lora_of(adapter)
            if lora and slot.lora != lora:
                # llama.cpp drops what a slot holds where the next request has other adapters than the last one had.
                answer = server.complete(
                    {"prompt": [ids[0]], "max_tokens": 1, "id_slot": slot.number, "cache_prompt": False, "lora": lora},
                    None,
                )
                if "error" in answer:
                    return 0
                slot.lora = lora
            try:
                restored = server.restore_slot(slot.number, body.name)
            except EngineError as error:
                raise PrefixRefused(f"{path} was not loaded: {error} Its prompt is prefilled instead.") from error
            if restored != len(ids):
                raise PrefixRefused(f"{path} was not loaded: llama.cpp took {restored} of its {len(ids)} tokens.")
            slot.hold(Holding.LOADED, ids, adapter)
        finally:
            self.slots.put(slot)
        log.info("kv_prefix_loaded tokens=%d", len(ids))
        return len(ids)

    def _kv_fingerprint(self, adapter: str | None) -> dict[str, Part]:
        """All that decides keys and values of given ids, by name."""
        number = None if adapter is None else self.adapters[adapter]
        return {
            **self._fingerprint,
            "adapter": adapter,
            "adapter_digest": None if number is None else self.info.adapter_digests[number],
            "adapter_scaling": None if number is None else float(self.scalings[number]),
        }

    def _new_file(self) -> Path:
        """A name of the slot folder that nothing has. llama.cpp makes files that anyone may read: the folder is not."""
        return self._folder / f"{os.getpid()}-{secrets.token_hex(8)}.slot"


@dataclass(frozen=True, slots=True)
class _SlotCopy:
    """A PrefixCopy. body: llama.cpp's own file, which goes away once it is written or discarded."""

    ids: tuple[int, ...]
    body: Path
    fingerprint: dict[str, Part]

    def write(self, path: Path) -> None:
        try:
            size_bytes = write_slot_file(path, fingerprint=self.fingerprint, ids=self.ids, body=self.body)
        finally:
            self.discard()
        log.info("kv_prefix_saved tokens=%d bytes=%d", len(self.ids), size_bytes)

    def discard(self) -> None:
        self.body.unlink(missing_ok=True)


def common_tokens(one: Seq[int], other: Seq[int]) -> int:
    """How many ids two sequences begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
