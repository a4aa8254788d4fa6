"""A loaded GGUF model and its slots: what an engine that generates and one that embeds have in common.

A process makes its engine after any fork, and does not fork (without exec) afterwards. It leaves with
`os._exit` after flushing its streams: the interpreter's own exit runs destructors in an order of its own, and
destroying a llama.cpp server that is at work hangs for ever.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from pathlib import Path

from headpond.errors import EngineError
from headpond.requests import Message
from headpond.tables import LlamaCppModel
from headpond_workers.engines.formats.gguf_header import read_header
from headpond_workers.engines.formats.gguf_vocabulary import read_vocabulary
from headpond_workers.engines.formats.weights_digest import DigestOf, digest_of
from headpond_workers.engines.llamacpp.adapters import LlamaAdapter, checked_adapter
from headpond_workers.engines.llamacpp.parameters import check_parameters, pooling_of
from headpond_workers.engines.llamacpp.server import LlamaServer, import_xllamacpp
from headpond_workers.engines.llamacpp.slot_pool import Slot, SlotPool, Worth, least_missed
from headpond_workers.engines.protocol import NO_ADAPTERS, Capability, DeviceUse, EngineInfo, Verdict
from headpond_workers.engines.templates.chat_template import ChatTemplate
from headpond_workers.engines.templates.template_check import check_template

log = logging.getLogger(__name__)

_EMBEDS = 'It needs task = "embed", and then embeds only: give the weights to a second model with that key.'
_SLOT_WAIT_S = 0.5
_CLOSE_TIMEOUT_S = 10.0
_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def default_threads(workers_on_host: int) -> int:
    """The cores that this process may use, divided by the workers on the machine; at least 1.

    More threads than cores are not just useless: llama.cpp's threads wait for each other by spinning.
    """
    return max(1, _usable_cores() // max(1, workers_on_host))


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):
        return cores  # no cgroup, or one of another kind: there is no quota to respect
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


class LlamaModel:
    """One GGUF model. Thread-safe; runs up to `info.slots` calls together."""

    def __init__(
        self,
        settings: LlamaCppModel,
        path: Path,
        *,
        threads: int | None,
        capabilities: frozenset[Capability],
        sampling: frozenset[str],
        digest_of: DigestOf = digest_of,
        slot_folder: Path | None = None,
    ) -> None:
        """Load and warm the model at `path`. threads: None takes the settings' or all cores. digest_of: the SHA-256
        of a file, in hex. slot_folder: as of `LlamaServer`.

        Raises ModelFileError for a file that is not a sound model, EngineUnavailable for what is missing or
        does not fit.
        """
        threads = threads or settings.threads or default_threads(1)
        import_xllamacpp()
        header = read_header(path)
        self.vocabulary = read_vocabulary(header)
        check_parameters(settings, header, threads=threads)
        pooling = pooling_of(settings, header)
        adapters = [
            checked_adapter(name, table, header, digest_of=digest_of) for name, table in settings.adapters.items()
        ]
        template = self.vocabulary.chat_template
        if template:
            check_template(template, bos_token=self.vocabulary.bos_token, eos_token=self.vocabulary.eos_token)
        self._template = (
            ChatTemplate(template, bos_token=self.vocabulary.bos_token, eos_token=self.vocabulary.eos_token)
            if template
            else None
        )
        self.adapters = {adapter.name: number for number, adapter in enumerate(adapters)}
        self.scalings = [adapter.scaling for adapter in adapters]
        version = importlib.metadata.version("xllamacpp")
        weights_digest = digest_of(path)
        self.info = EngineInfo(
            engine="llamacpp",
            fingerprint=_fingerprint(
                settings, weights_sha256=weights_digest, version=version, template=template, adapters=adapters
            ),
            context_tokens=settings.context_tokens,
            slots=settings.slots,
            capabilities=capabilities | (frozenset({Capability.ADAPTERS}) if adapters else frozenset()),
            adapters=tuple(self.adapters),
            sampling=sampling,
            adapter_digests=tuple(adapter.sha256 for adapter in adapters),
            weights_digest=weights_digest,
            remedies={Capability.EMBEDDINGS: _EMBEDS, Capability.ADAPTERS: NO_ADAPTERS},
        )
        self._gpu_layers = settings.gpu_layers
        self._server: LlamaServer | None = LlamaServer(
            settings, path, threads=threads, pooling=pooling, adapters=adapters, slot_folder=slot_folder
        )
        self.slots = SlotPool(settings.slots)
        log.info(
            "engine_loaded engine=llamacpp task=%s xllamacpp=%s slots=%d context_tokens=%d threads=%d exact=%s "
            "adapters=%d",
            settings.task,
            version,
            settings.slots,
            settings.context_tokens,
            threads,
            settings.exact,
            len(adapters),
        )

    def render(self, messages: Seq[Message]) -> list[int]:
        """As llama.cpp's own chat completion: special tokens in the text are taken for what they are."""
        return self.tokenise(self.render_text(messages), add_special=True, parse_special=True)

    def render_text(self, messages: Seq[Message]) -> str:
        """The text of a conversation, without the BOS token if the tokenizer adds it by itself.

        A model without a template is shown the contents alone.
        """
        if self._template is None:
            return "\n\n".join(message.content for message in messages)
        text = self._template.render(messages)
        return text.removeprefix(self.vocabulary.bos_token) if self.vocabulary.adds_bos else text

    def encode(self, text: str) -> list[int]:
        return self.tokenise(text, add_special=False, parse_special=False)

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self.vocabulary.token_bytes):
            raise EngineError(f"{token_id} is no token of this model, which has {len(self.vocabulary.token_bytes)}.")
        return self.vocabulary.token_bytes[token_id]

    def device_use(self) -> DeviceUse:
        return DeviceUse("cpu" if self._gpu_layers == 0 else "gpu")

    def close(self) -> None:
        """End what runs, with EngineError at its next token, and free the model."""
        server, self._server = self._server, None
        if server is None:
            return
        for _ in range(self.info.slots):
            if self.slots.take(_CLOSE_TIMEOUT_S) is None:
                # Destroying a server at work hangs, see `os._exit` above.
                log.warning("engine_closed_busy engine=llamacpp")
                return
        server.close()

    @contextmanager
    def slot(self, proceed: Callable[[], Verdict], *, worth: Worth = least_missed) -> Iterator[Slot | None]:
        """A slot that is this caller's, the one of most worth, or None after a verdict STOP. Only one beyond
        `info.slots` waits here."""
        while (taken := self.slots.take(_SLOT_WAIT_S, worth)) is None:
            if proceed() is Verdict.STOP:
                yield None
                return
        try:
            yield taken
        finally:
            self.slots.put(taken)

    def tokenise(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        tokens: list[int] = self.open_server().post("/tokenize", body)["tokens"]
        return tokens

    def open_server(self) -> LlamaServer:
        """Raises EngineError after `close`."""
        if self._server is None:
            raise EngineError("The engine is closed.")
        return self._server


def _fingerprint(
    settings: LlamaCppModel, *, weights_sha256: str, version: str, template: str, adapters: Seq[LlamaAdapter]
) -> str:
    """Weights hold the tokenizer. Threads, slots and devices are left out: they change no promise of this engine."""
    decisive = {
        "engine": "llamacpp",
        "xllamacpp": version,
        "weights_sha256": weights_sha256,
        "chat_template_sha256": hashlib.sha256(template.encode("utf-8", "surrogateescape")).hexdigest(),
        "context_tokens": settings.context_tokens,
        "exact": settings.exact,
        "task": settings.task,
        "pooling": settings.pooling,
        "cache": [settings.cache_type_k, settings.cache_type_v, settings.flash_attention],
        "rope": [settings.rope_scaling, settings.rope_freq_base, settings.rope_freq_scale],
        "adapters": {adapter.name: [adapter.sha256, adapter.scaling] for adapter in adapters},
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
