"""llama.cpp on the CPU, through xllamacpp.

A process makes its engine after any fork, and does not fork (without exec) afterwards. It leaves with
`os._exit` after flushing its streams: the interpreter's own exit runs destructors in an order of its own, and
destroying a llama.cpp server that is at work hangs for ever.

What is promised of resuming: no id is lost or repeated. With `exact` prefill and decode take one numeric
path, so that greedy goes on with the same ids; seeded sampling too, by replaying the draws from the start,
which costs no more there. Without it, draws after a resume come from a seed of their own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import queue
from collections.abc import Sequence as Seq
from pathlib import Path

from headpond.errors import EngineError, PromptTooLong
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.tables import LlamaCppModel
from headpond_workers.engines.chat_template import ChatTemplate
from headpond_workers.engines.gguf_header import read_header
from headpond_workers.engines.gguf_vocabulary import read_vocabulary
from headpond_workers.engines.id_recovery import IdRecovery
from headpond_workers.engines.llamacpp_completion import Completion
from headpond_workers.engines.llamacpp_server import LlamaServer, check_parameters, import_xllamacpp
from headpond_workers.engines.protocol import Capability, DeviceUse, Emit, EngineInfo, Finish, Sequence, Verdict
from headpond_workers.engines.template_check import check_template
from headpond_workers.engines.weights_digest import digest_of

log = logging.getLogger(__name__)

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


class LlamaCppEngine:
    """One GGUF model. Thread-safe; runs up to `info.slots` sequences together."""

    def __init__(self, settings: LlamaCppModel, path: Path, *, threads: int | None = None) -> None:
        """Load and warm the model at `path`. threads: None takes the settings' or all cores.

        Raises ModelFileError for a file that is not a sound model, EngineUnavailable for what is missing or
        does not fit.
        """
        threads = threads or settings.threads or default_threads(1)
        import_xllamacpp()
        header = read_header(path)
        self._vocabulary = read_vocabulary(header)
        check_parameters(header, slots=settings.slots, context_tokens=settings.context_tokens, threads=threads)
        template = self._vocabulary.chat_template
        if template:
            check_template(template, bos_token=self._vocabulary.bos_token, eos_token=self._vocabulary.eos_token)
        self._template = (
            ChatTemplate(template, bos_token=self._vocabulary.bos_token, eos_token=self._vocabulary.eos_token)
            if template
            else None
        )
        self._recovery = IdRecovery(self._vocabulary.token_bytes)
        self._exact = settings.exact
        version = importlib.metadata.version("xllamacpp")
        self.info = EngineInfo(
            engine="llamacpp",
            fingerprint=_fingerprint(settings, weights_sha256=digest_of(path), version=version, template=template),
            context_tokens=settings.context_tokens,
            slots=settings.slots,
            capabilities=frozenset(
                {Capability.SEEDED, Capability.EXACT_RESUME} if settings.exact else {Capability.SEEDED}
            ),
        )
        self._server: LlamaServer | None = LlamaServer(
            path,
            slots=settings.slots,
            context_tokens=settings.context_tokens,
            threads=threads,
            exact=settings.exact,
        )
        # Not SimpleQueue: its get(timeout=...) may wait for ever beside other waiters.
        self._free_slots: queue.Queue[int] = queue.Queue()
        for slot in range(settings.slots):
            self._free_slots.put(slot)
        log.info(
            "engine_loaded engine=llamacpp xllamacpp=%s slots=%d context_tokens=%d threads=%d exact=%s",
            version,
            settings.slots,
            settings.context_tokens,
            threads,
            settings.exact,
        )

    def render(self, messages: Seq[Message]) -> list[int]:
        """As llama.cpp's own chat completion: special tokens in the text are taken for what they are."""
        return self._tokenise(self.render_text(messages), add_special=True, parse_special=True)

    def render_text(self, messages: Seq[Message]) -> str:
        """The text of a conversation, without the BOS token if the tokenizer adds it by itself.

        A model without a template is shown the contents alone.
        """
        if self._template is None:
            return "\n\n".join(message.content for message in messages)
        text = self._template.render(messages)
        return text.removeprefix(self._vocabulary.bos_token) if self._vocabulary.adds_bos else text

    def encode(self, text: str) -> list[int]:
        return self._tokenise(text, add_special=False, parse_special=False)

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self._vocabulary.token_bytes):
            raise EngineError(f"{token_id} is no token of this model, which has {len(self._vocabulary.token_bytes)}.")
        return self._vocabulary.token_bytes[token_id]

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        self.info.require_for(sequence)
        present = len(sequence.prompt) + len(sequence.generated)
        if present >= self.info.context_tokens:
            if sequence.generated:
                return Finish(FinishReason.LENGTH)
            raise PromptTooLong(prompt_tokens=present, context_tokens=self.info.context_tokens)
        emit = self._until_closed(emit)
        slot = self._take_slot(emit)
        if slot is None:
            return Finish(FinishReason.CANCELLED)
        try:
            if self._exact and sequence.generated and sequence.sampling.temperature > 0:
                replay = _Replay(sequence.generated, emit)
                finish = self._run(sequence, slot, replay, from_start=True)
                if replay.done or (finish.reason is FinishReason.CANCELLED and not replay.diverged):
                    return finish
                log.warning("replay_diverged engine=llamacpp known_tokens=%d", len(sequence.generated))
            return self._run(sequence, slot, emit, from_start=False)
        finally:
            self._free_slots.put(slot)

    def device_use(self) -> DeviceUse:
        return DeviceUse("cpu")

    def close(self) -> None:
        """End what runs, with EngineError at its next token, and free the model."""
        server, self._server = self._server, None
        if server is None:
            return
        for _ in range(self.info.slots):
            try:
                self._free_slots.get(timeout=_CLOSE_TIMEOUT_S)
            except queue.Empty:
                # Destroying a server at work hangs, see `os._exit` above.
                log.warning("engine_closed_busy engine=llamacpp")
                return
        server.close()

    def _run(self, sequence: Sequence, slot: int, emit: Emit, *, from_start: bool) -> Finish:
        known = () if from_start else sequence.generated
        ids = (*sequence.prompt, *known)
        wanted = sequence.max_tokens + (len(sequence.generated) if from_start else 0)
        return Completion(
            self._open_server(),
            slot=slot,
            token_bytes=self._vocabulary.token_bytes,
            recovery=self._recovery,
            prompt=ids,
            prior=len(known),
            max_tokens=min(wanted, self.info.context_tokens - len(ids)),
            sampling=sequence.sampling,
            seed=sequence.seed,
            emit=emit,
        ).run()

    def _until_closed(self, emit: Emit) -> Emit:
        def emit_while_open(ids: Seq[int]) -> Verdict:
            self._open_server()
            return emit(ids)

        return emit_while_open

    def _take_slot(self, emit: Emit) -> int | None:
        """A free slot, or None after a verdict STOP. Only a caller beyond `info.slots` waits here."""
        while True:
            try:
                return self._free_slots.get(timeout=_SLOT_WAIT_S)
            except queue.Empty:
                if emit([]) is Verdict.STOP:
                    return None

    def _tokenise(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        tokens: list[int] = self._open_server().post("/tokenize", body)["tokens"]
        return tokens

    def _open_server(self) -> LlamaServer:
        if self._server is None:
            raise EngineError("The engine is closed.")
        return self._server


class _Replay:
    """Takes the ids that earlier attempts emitted without passing them on, as long as they come out alike."""

    def __init__(self, known: Seq[int], emit: Emit) -> None:
        self._known = known
        self._emit = emit
        self._at = 0
        self.diverged = False

    @property
    def done(self) -> bool:
        return self._at == len(self._known)

    def __call__(self, ids: Seq[int]) -> Verdict:
        again = tuple(ids[: len(self._known) - self._at])
        if again != tuple(self._known[self._at : self._at + len(again)]):
            self.diverged = True
            return Verdict.STOP
        self._at += len(again)
        return self._emit(list(ids[len(again) :]))


def _fingerprint(settings: LlamaCppModel, *, weights_sha256: str, version: str, template: str) -> str:
    """Weights hold the tokenizer. Threads and slots are left out: they change no promise of this engine."""
    decisive = {
        "engine": "llamacpp",
        "xllamacpp": version,
        "weights_sha256": weights_sha256,
        "chat_template_sha256": hashlib.sha256(template.encode("utf-8", "surrogateescape")).hexdigest(),
        "context_tokens": settings.context_tokens,
        "exact": settings.exact,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
