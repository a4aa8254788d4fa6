"""Writes a LoRA for the tiny checkpoint: `python -m exllamav2_cpu.tiny_adapter FOLDER CHECKPOINT SEED`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RANK = 8
ALPHA = 16
STRENGTH = 0.2
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def adapter_weights(checkpoint: Path, seed: int) -> dict[str, Any]:
    """PEFT's names -> fp32 tensors: lora_A (RANK, in), lora_B (out, RANK), for each target of each layer."""
    chance = torch.Generator().manual_seed(seed)
    weights: dict[str, Any] = {}
    for name, tensor in sorted(load_file(str(checkpoint / "model.safetensors")).items()):
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            rows, columns = tensor.shape
            base = f"base_model.model.{module}"
            weights[f"{base}.lora_A.weight"] = torch.randn(RANK, columns, generator=chance) * STRENGTH
            weights[f"{base}.lora_B.weight"] = torch.randn(rows, RANK, generator=chance) * STRENGTH
    return weights


def main(folder: Path, checkpoint: Path, seed: int) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    save_file(adapter_weights(checkpoint, seed), str(folder / "adapter_model.safetensors"), {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [target.split(".")[1] for target in TARGETS],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
