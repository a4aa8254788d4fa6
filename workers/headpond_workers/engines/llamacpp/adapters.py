"""LoRA adapters in GGUF files, checked against the model's own header before llama.cpp sees them.

A model's matrix of shape (in, out) has a pair: NAME.lora_a of shape (in, rank) and NAME.lora_b of shape (rank, out).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from headpond.errors import EngineUnavailable
from headpond.tables import AdapterTable
from headpond_workers.engines.formats.gguf_header import GgufHeader, TensorInfo, read_header
from headpond_workers.engines.formats.model_files import open_regular
from headpond_workers.engines.formats.weights_digest import DigestOf, digest_of

MAX_RANK = 4096
_FLOATS: dict[int, Any] = {0: numpy.dtype("<f4"), 1: numpy.dtype("<f2")}
_PART_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class LlamaAdapter:
    """scaling: what a request multiplies it with. sha256: of its file."""

    name: str
    path: Path
    scaling: float
    sha256: str


def checked_adapter(
    name: str, table: AdapterTable, model: GgufHeader, *, digest_of: DigestOf = digest_of
) -> LlamaAdapter:
    """model: of the model that it is to go with. digest_of: the SHA-256 of a file, in hex.

    Raises ModelFileError for a file that is no sound GGUF, EngineUnavailable, naming the adapter, for one that is no
    LoRA adapter, is damaged, or was made for another model.
    """
    # A pipe or a device would be waited for.
    open_regular(table.path).close()
    header = read_header(table.path)
    reason = _mismatch(header, model) or _not_finite(table.path, header)
    if reason:
        raise EngineUnavailable(
            f"The adapter '{name}' ({table.path}) does not go with this model: {reason}. Correct its path, convert it "
            "again for this model, or remove it from adapters."
        )
    return LlamaAdapter(name, table.path, table.scaling, digest_of(table.path))


def _mismatch(header: GgufHeader, model: GgufHeader) -> str:
    """Why an adapter does not go with a model; empty if it does."""
    kind = (header.text("general.type"), header.text("adapter.type"))
    if kind != ("adapter", "lora"):
        return f"it is no LoRA adapter (its general.type is '{kind[0][:40]}', its adapter.type '{kind[1][:40]}')"
    ours, theirs = (of.text("general.architecture") for of in (model, header))
    if ours != theirs:
        return f"it was made for the architecture '{theirs[:40]}', and the model's is '{ours[:40]}'"
    alpha = header.metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        return f"its adapter.lora.alpha is {alpha!r}"
    if any(key.startswith("adapter.alora.") for key in header.metadata):
        return "it is switched on by a token of the prompt (aLoRA), which headpond does not do"
    weights = {tensor.name: tensor for tensor in model.tensors}
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for tensor in header.tensors:
        target, dot, half = tensor.name.rpartition(".lora_")
        if not dot or half not in ("a", "b"):
            return f"its tensor '{tensor.name[:80]}' is no half of a pair"
        if half in pairs.setdefault(target, {}):
            return f"its tensor '{tensor.name[:80]}' is there twice"
        pairs[target][half] = tensor
    if not pairs:
        return "it changes no weights"
    return next((reason for target, pair in pairs.items() if (reason := _pair_mismatch(target, pair, weights))), "")


def _pair_mismatch(target: str, pair: dict[str, TensorInfo], weights: dict[str, TensorInfo]) -> str:
    if len(pair) != 2:
        return f"'{target[:80]}' has lora_a without lora_b, or the reverse"
    weight, down, up = weights.get(target), pair["a"], pair["b"]
    if weight is None:
        return f"the model has no weights '{target[:80]}'"
    if target == "token_embd.weight":
        return "it changes the embedding of tokens, which headpond does not do"
    if any(half.type not in _FLOATS for half in (down, up)):
        return f"'{target[:80]}' is stored as something other than F32 or F16"
    if not len(weight.shape) == len(down.shape) == len(up.shape) == 2:
        return f"'{target[:80]}' is no matrix"
    rank = down.shape[1]
    if not 0 < rank <= MAX_RANK or up.shape[0] != rank or (down.shape[0], up.shape[1]) != weight.shape:
        return (
            f"'{target[:80]}' is {'x'.join(map(str, weight.shape))} in the model, and the adapter's halves are "
            f"{'x'.join(map(str, down.shape))} and {'x'.join(map(str, up.shape))}"
        )
    return ""


def _not_finite(path: Path, header: GgufHeader) -> str:
    """One NaN would make every token of every sequence NaN."""
    with open_regular(path) as file:
        for tensor in header.tensors:
            file.seek(header.data_start + tensor.offset)
            left = tensor.size_bytes or 0
            while left:
                part = file.read(min(left, _PART_BYTES))
                if not part:
                    return f"its tensor '{tensor.name[:80]}' is cut off"
                left -= len(part)
                if not numpy.isfinite(numpy.frombuffer(part, dtype=_FLOATS[tensor.type])).all():
                    return f"its tensor '{tensor.name[:80]}' holds numbers that are none"
    return ""
