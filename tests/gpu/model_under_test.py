"""The checkpoint that HEADPOND_GPU_MODEL names, and why there is none to test."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_conformance import Attempt, prompt_of, sequence
from engine_subjects import GPU_MODEL
from exllamav2_cpu.availability import DECLINED_BY
from headpond.tables import ExLlamaV2Model
from headpond_workers.engines.exllama.memory import KvShape
from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine
from headpond_workers.engines.exllamav2.loading import LoadedModel, load_model
from headpond_workers.engines.formats.checkpoint_folder import check_checkpoint
from headpond_workers.engines.formats.safetensors_header import read_safetensors_header

CONTEXT_TOKENS = 2048
QUESTION = "What is 2 + 2? Answer with the number only."
"""A model that is worth serving says 4."""


def reason_to_skip() -> str | None:
    """None where a CUDA device is there and a model is named, else a reason that begins with "gpu: "."""
    if "exllamav2" in os.environ.get(DECLINED_BY, "").split(","):
        return "gpu: exllamav2 was declined, so no CUDA device was looked for"
    if importlib.util.find_spec("torch") is None:
        return "gpu: no CUDA device (torch is not installed)"
    # Not before: it must not be imported where it was declined.
    import torch

    from exllamav2_cpu import harness

    # The harness is never installed where a device is in sight, and lets torch tell of devices that are not there.
    if harness.installed() is not None or not torch.cuda.is_available():
        return "gpu: no CUDA device"
    if not os.environ.get(GPU_MODEL):
        return f"gpu: {GPU_MODEL} is not set; it names the folder of an EXL2 checkpoint"
    return None


@dataclass(frozen=True)
class ModelUnderTest:
    """folder: of the checkpoint. digest_cache: keeps the digests of its weights from test to test."""

    folder: Path
    digest_cache: Path

    def table(self, **keys: Any) -> ExLlamaV2Model:
        """Its table, by default with one slot of CONTEXT_TOKENS."""
        defaults = {"engine": "exllamav2", "path": self.folder, "context_tokens": CONTEXT_TOKENS, "slots": 1}
        return ExLlamaV2Model.model_validate(defaults | keys)

    @contextmanager
    def loaded(self, **keys: Any) -> Iterator[ExLlamaV2Engine]:
        """Its engine with these keys in the table, closed afterwards."""
        engine = ExLlamaV2Engine(self.table(**keys), digest_cache=self.digest_cache)
        try:
            yield engine
        finally:
            engine.close()

    def load_model(self, **keys: Any) -> LoadedModel:
        """The model alone, without headpond's loop. The caller unloads it."""
        settings = self.table(**keys)
        folder = check_checkpoint(self.folder, digest_cache=self.digest_cache)
        return load_model(settings, folder, {}, on_layer=lambda done, total: None)

    def config(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return values

    @property
    def is_exl2(self) -> bool:
        """Whether its weights are EXL2-quantised."""
        headers = map(read_safetensors_header, self.folder.glob("*.safetensors"))
        return any(name.endswith(".q_weight") for header in headers for name in header.tensors)

    @property
    def weight_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    @property
    def kv_shape(self) -> KvShape:
        config = self.config()
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return KvShape(config["num_hidden_layers"], config.get("num_key_value_heads", heads), head_dim)


def greedy_answer(engine: ExLlamaV2Engine, question: str = QUESTION, *, max_tokens: int = 16) -> str:
    """What the model says, without the spaces around it."""
    return Attempt(engine, sequence(prompt_of(engine, question), max_tokens=max_tokens)).run().text.strip()
