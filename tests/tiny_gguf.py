"""A GGUF model of some kilobytes, and LoRA adapters for any GGUF model: made here, with the gguf package, repeatably.

The tiny model knows every byte, some pairs and runs of letters, and nothing of language: what it says is noise, so it
soon tries whatever a grammar lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy

from headpond_workers.engines.formats.gguf_header import read_header

EMBEDDING, HEADS, FEED = 64, 2, 64
CONTEXT_TOKENS = 512
BEGIN, END = "<|begin|>", "<|end|>"
PAIRS = ["ab", "ba", "bb", "aab", "cc", "bc", "12", '":', '{"', '"}']


def _alphabet() -> list[str]:
    """The character that stands for each byte in GPT-2's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    extra = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(extra)) for byte in range(256)]


def write_tiny_model(
    path: Path, *, seed: int = 1, layers: int = 1, pooling: int | None = None, template: str | None = None
) -> Path:
    """Tokens 0 to 255 are the bytes, then PAIRS, BEGIN and END. pooling: as in the GGUF key, None for none. template:
    of chats, likewise."""
    letters = _alphabet()
    tokens = [*letters, *PAIRS, BEGIN, END]
    merges = [" ".join((pair[:-1], pair[-1])) for pair in PAIRS if len(pair) == 2]
    merges += ["a ab"]
    control = gguf.TokenType.CONTROL
    types = [gguf.TokenType.NORMAL] * (len(tokens) - 2) + [control, control]
    random = numpy.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))

    def noise(*shape: int) -> Any:
        return (random.standard_normal(shape) * 0.3).astype(numpy.float32)

    writer.add_tensor("token_embd.weight", noise(len(tokens), EMBEDDING))
    writer.add_tensor("output_norm.weight", numpy.ones(EMBEDDING, numpy.float32))
    writer.add_tensor("output.weight", noise(len(tokens), EMBEDDING))
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", noise(EMBEDDING, EMBEDDING))
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", noise(FEED, EMBEDDING))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", numpy.ones(EMBEDDING, numpy.float32))
    _finish(writer)
    return path


def write_adapter(
    path: Path,
    model: Path,
    *,
    seed: int,
    targets: Sequence[str] = ("blk.0.attn_q.weight", "blk.0.ffn_up.weight"),
    rank: int = 4,
    size: float = 0.5,
    alpha: float = 4.0,
    changed: Callable[[str, Any], Any] = lambda name, values: values,
    **texts: str,
) -> Path:
    """A LoRA adapter of random weights for a model.

    size: standard deviation of its weights. changed: takes the name and the values of a half, and gives others. texts:
    metadata that differ (`type`, `kind`, `architecture`).
    """
    header = read_header(model)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    random = numpy.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, texts.get("architecture", header.text("general.architecture")))
    writer.add_type(texts.get("type", "adapter"))
    writer.add_string("adapter.type", texts.get("kind", "lora"))
    writer.add_float32("adapter.lora.alpha", alpha)
    for target in targets:
        wide, tall = shapes[target]
        for half, shape in (("lora_a", (rank, wide)), ("lora_b", (tall, rank))):
            values = (random.standard_normal(shape) * size).astype(numpy.float32)
            writer.add_tensor(f"{target}.{half}", changed(f"{target}.{half}", values))
    _finish(writer)
    return path


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
