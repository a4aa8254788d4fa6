"""Converts SmolLM2 from GGUF: `python -m exllamav2_cpu.smollm2_checkpoint FOLDER GGUF`.

The weights are those of the file, dequantised and rounded to fp16; vocabulary, merges and chat template are its own.
For this one family only: architecture "llama", byte-level BPE with the splitting rule "smollm", tied embeddings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = 3
"""A tokenizer.ggml.token_type."""
END_OF_TEXT = "<|endoftext|>"
"""llama.cpp takes it for an end as well, beside the end token that the file names."""
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Gguf:
    """One GGUF file: metadata by key, tensors by name."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self.tensors: list[Any] = self._reader.tensors
        for key, expected in (
            ("general.architecture", "llama"),
            ("tokenizer.ggml.model", "gpt2"),
            ("tokenizer.ggml.pre", "smollm"),
        ):
            if self[key] != expected:
                raise ValueError(f"{path.name}: {key} is {self[key]!r}; only {expected!r} is converted here.")

    def __getitem__(self, key: str) -> Any:
        return self._reader.fields[key].contents()

    def has(self, key: str) -> bool:
        return key in self._reader.fields


def weights(gguf: Gguf) -> dict[str, npt.NDArray[np.float16]]:
    """Hugging Face's names -> tensors."""
    heads = {"attn_q": gguf["llama.attention.head_count"], "attn_k": gguf["llama.attention.head_count_kv"]}
    converted = {}
    for tensor in gguf.tensors:
        name = tensor.name.removesuffix(".weight")
        values = dequantize(tensor.data, tensor.tensor_type)
        if name in _WHOLE:
            target = _WHOLE[name]
        else:
            _, layer, part = name.split(".")
            target = f"model.layers.{layer}.{_OF_LAYER[part]}"
            if part in heads:
                values = unpermuted(values, heads[part])
        converted[f"{target}.weight"] = np.ascontiguousarray(values.astype(np.float16))
    return converted


def unpermuted(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of q or k in Hugging Face's order.

    GGUF pairs the rotated dimensions 2i and 2i + 1 of a head, Hugging Face i and i + head_dim / 2.
    """
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tokenizer(gguf: Gguf) -> Any:
    """Byte-level BPE that splits off every digit first."""
    pieces: list[str] = gguf["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in gguf["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    kinds = zip(pieces, gguf["tokenizer.ggml.token_type"], strict=True)
    made.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece, kind in kinds if kind == CONTROL]
    )
    return made


def configurations(gguf: Gguf) -> dict[str, dict[str, Any]]:
    """File name -> content. rope_theta stands by itself: exllamav2 does not read rope_parameters."""
    pieces: list[str] = gguf["tokenizer.ggml.tokens"]
    bos, eos = gguf["tokenizer.ggml.bos_token_id"], gguf["tokenizer.ggml.eos_token_id"]
    unknown = gguf["tokenizer.ggml.unknown_token_id"]
    model = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": len(pieces),
        "hidden_size": gguf["llama.embedding_length"],
        "intermediate_size": gguf["llama.feed_forward_length"],
        "num_hidden_layers": gguf["llama.block_count"],
        "num_attention_heads": gguf["llama.attention.head_count"],
        "num_key_value_heads": gguf["llama.attention.head_count_kv"],
        "max_position_embeddings": gguf["llama.context_length"],
        "rms_norm_eps": gguf["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": gguf["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    of_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[bos],
        "eos_token": pieces[eos],
        "unk_token": pieces[unknown],
        "add_bos_token": gguf.has("tokenizer.ggml.add_bos_token") and gguf["tokenizer.ggml.add_bos_token"],
        "model_max_length": gguf["llama.context_length"],
        "chat_template": gguf["tokenizer.chat_template"],
    }
    ends = [eos] + [number for number, piece in enumerate(pieces) if piece == END_OF_TEXT and number != eos]
    return {
        "config.json": model,
        "tokenizer_config.json": of_tokenizer,
        "generation_config.json": {"bos_token_id": bos, "eos_token_id": ends},
    }


def main(folder: Path, source: Path) -> None:
    """Write the Hugging Face files."""
    gguf = Gguf(source)
    save_file(weights(gguf), str(folder / "model.safetensors"), {"format": "pt"})
    tokenizer(gguf).save(str(folder / "tokenizer.json"))
    for name, content in configurations(gguf).items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
