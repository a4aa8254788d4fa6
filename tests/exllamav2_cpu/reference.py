"""What transformers computes of a checkpoint, in float32: `python -m exllamav2_cpu.reference REQUEST OUT`.

It runs in a process of its own, whose torch tells the truth about its devices.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from exllamav2_cpu.processes import environment, run_python


@dataclass(frozen=True, slots=True)
class Reference:
    """For each prompt: logits (n, vocabulary), and the ids that greedy decoding appends; no token ends it."""

    logits: tuple[Any, ...]
    greedy: tuple[list[int], ...]


def reference(
    folder: Path, prompts: Sequence[Sequence[int]], *, new_tokens: int, adapter: Path | None = None
) -> Reference:
    """adapter: a PEFT folder, merged into the weights at its own scaling."""
    with tempfile.TemporaryDirectory() as scratch:
        request, out = Path(scratch) / "request.json", Path(scratch) / "out.safetensors"
        request.write_text(
            json.dumps(
                {
                    "folder": str(folder),
                    "prompts": [list(prompt) for prompt in prompts],
                    "new_tokens": new_tokens,
                    "adapter": str(adapter) if adapter else None,
                }
            )
        )
        run_python(["-m", "exllamav2_cpu.reference", str(request), str(out)], env=environment(CUDA_VISIBLE_DEVICES=""))
        found = load_file(str(out))
    numbers = range(len(prompts))
    return Reference(
        tuple(found[f"logits.{n}"] for n in numbers), tuple(found[f"greedy.{n}"].tolist() for n in numbers)
    )


def main(request: Path, out: Path) -> None:
    """Compute what reference() reads."""
    # Not at the top: it takes seconds, and the process that asks has no use for it.
    from transformers import LlamaForCausalLM

    asked = json.loads(request.read_text())
    model = LlamaForCausalLM.from_pretrained(asked["folder"], dtype=torch.float32).eval()
    if asked["adapter"]:
        _merge(model, Path(asked["adapter"]))
    found = {}
    with torch.inference_mode():
        for number, prompt in enumerate(asked["prompts"]):
            ids = torch.tensor([prompt])
            answer = model(ids, use_cache=True)
            found[f"logits.{number}"] = answer.logits[0].contiguous()
            appended: list[int] = []
            while len(appended) < asked["new_tokens"]:
                appended.append(int(answer.logits[0, -1].argmax()))
                answer = model(torch.tensor([appended[-1:]]), past_key_values=answer.past_key_values, use_cache=True)
            found[f"greedy.{number}"] = torch.tensor(appended)
    save_file(found, str(out))


def _merge(model: Any, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(str(adapter / "adapter_model.safetensors"))
    for name, a in weights.items():
        if name.endswith(".lora_A.weight"):
            module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            b = weights[name.replace(".lora_A.", ".lora_B.")]
            with torch.no_grad():
                module.weight += config["lora_alpha"] / config["r"] * (b @ a)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
