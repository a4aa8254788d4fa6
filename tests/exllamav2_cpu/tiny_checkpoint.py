"""Trains the tiny checkpoint: `python -m exllamav2_cpu.tiny_checkpoint FOLDER`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from exllamav2_cpu.tiny_corpus import (
    ANSWERS,
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    EOS,
    RUNS_ON,
    STORY,
    SYSTEM,
    UNKNOWN,
    USER,
    lessons,
    rendered,
)

log = logging.getLogger(__name__)

SPECIAL = [UNKNOWN, BOS, EOS, SYSTEM, USER, ASSISTANT]
VOCABULARY = 352
WINDOW = 192
STEPS = 120
LEARNING_RATE = 6e-3
IGNORED = -100
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def train_tokenizer() -> Any:
    """Byte-level BPE: each special token one id, all bytes, then what the corpus has most."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The answers stay out of it: their characters are to be of several tokens.
    tokenizer.train_from_iterator([STORY] * 4 + [*ANSWERS, RUNS_ON], trainer)
    return tokenizer


def batches(tokenizer: Any, steps: int) -> Any:
    """Yield (ids, labels), each (rows, WINDOW): stretches of the story, and lessons in a row."""
    bos = tokenizer.token_to_id(BOS)
    story = tokenizer.encode(STORY * 12).ids
    told = tokenizer.encode(rendered(RUNS_ON)).ids + story
    learned = [tokenizer.encode(lesson).ids for lesson in lessons()]
    chance = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = []
        for begins_with_bos in (True, False, False):
            at = int(torch.randint(0, len(story) - WINDOW, (1,), generator=chance))
            rows.append(([bos] if begins_with_bos else []) + story[at:])
        rows.append(told)
        for _ in range(2):
            row: list[int] = []
            for which in torch.randperm(len(learned), generator=chance).tolist():
                row += learned[which]
            rows.append(row)
        # One lesson by itself, at the beginning: what a question without a history looks like.
        rows += learned
        ids = torch.zeros(len(rows), WINDOW, dtype=torch.long)
        labels = torch.full_like(ids, IGNORED)
        for number, row in enumerate(rows):
            cut = torch.tensor(row[:WINDOW])
            ids[number, : len(cut)] = labels[number, : len(cut)] = cut
        yield ids, labels


def train(tokenizer: Any) -> tuple[Any, float]:
    """The model and its last loss."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        tie_word_embeddings=False,
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS)
    loss = torch.tensor(torch.inf)
    for ids, labels in batches(tokenizer, STEPS):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return model, float(loss.detach())


def write(folder: Path, tokenizer: Any, model: Any) -> None:
    """The Hugging Face files. rope_theta stands by itself: exllamav2 does not read rope_parameters."""
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    ids = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        **SHAPE,
        **ids,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "add_bos_token": False,
        "model_max_length": SHAPE["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", ids),
    ):
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def main(folder: Path) -> None:
    """Train and write."""
    tokenizer = train_tokenizer()
    model, loss = train(tokenizer)
    if not loss < 0.1:
        raise RuntimeError(f"The tiny model did not learn its text: loss {loss:.3f} after {STEPS} steps.")
    write(folder, tokenizer, model)
    log.warning("checkpoint_trained folder=%s vocabulary=%d loss=%.4f", folder, tokenizer.get_vocab_size(), loss)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
