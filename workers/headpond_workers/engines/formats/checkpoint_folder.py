"""A folder with a model or an adapter in Hugging Face's layout, checked before any loader sees it.

What is checked: no file that a loader could unpickle; every weight file's header; the sizes in config.json; names
in an index. Links to files are allowed, wherever they lead (a Hugging Face cache is made of them): what counts is
the content, which is digested. Folders inside the folder are not looked at, and no loader looks there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from headpond.errors import ModelFileError
from headpond.terminal import escape_controls
from headpond_workers.engines.formats.model_files import open_regular, read_json_object, unreadable
from headpond_workers.engines.formats.safetensors_header import read_safetensors_header
from headpond_workers.engines.formats.weights_digest import remembered_digest_of

MAX_FILES = 4096
MAX_CONFIG_BYTES = 1 << 24
MAX_INDEX_BYTES = 1 << 26
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
"""Loading one runs whatever program it holds. numpy's .npy and .npz are not among them: numpy refuses pickles."""

_WEIGHTS = ".safetensors"
_INDEX = ".safetensors.index.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_DECISIVE = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_SIZE_LIMITS = {
    "num_hidden_layers": 1 << 12,
    "n_layers": 1 << 12,
    "n_layer": 1 << 12,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "num_local_experts": 1 << 14,
    "num_experts": 1 << 14,
    "head_dim": 1 << 14,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "moe_intermediate_size": 1 << 22,
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 28,
}
"""Of numbers in config.json by which a loader makes layers and tables before it reads a weight."""
_MAX_RANK = 1 << 14
_MAX_ALPHA = 1 << 20


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """weight_files: sorted by name. weight_bytes: of all of them.

    digest: SHA-256, in hex, over the names and contents of all files that decide what the model says.
    """

    path: Path
    weight_files: tuple[Path, ...]
    weight_bytes: int
    digest: str


def check_checkpoint(folder: Path, *, digest_cache: Path) -> CheckpointFolder:
    """Check a model's folder: config.json and *.safetensors, with the tokenizer's files.

    digest_cache: a folder that remembers digests, see `remembered_digest_of`. Raises ModelFileError that names
    the file and what to do.
    """
    names = _file_names(folder)
    _check_config(folder / "config.json")
    weights = tuple(folder / name for name in names if name.endswith(_WEIGHTS))
    if not weights:
        raise ModelFileError(
            f"{folder} holds no weights (*{_WEIGHTS}). Correct the path, or fetch the model in that format."
        )
    for name in names:
        if name.endswith(_INDEX):
            _check_index(folder / name)
    decisive = tuple(folder / name for name in names if name in _DECISIVE)
    return _checked(folder, weights, decisive, digest_cache)


def check_adapter(folder: Path, *, digest_cache: Path) -> CheckpointFolder:
    """Check a LoRA adapter's folder: adapter_config.json and adapter_model.safetensors. As `check_checkpoint`."""
    _file_names(folder)
    config = folder / _ADAPTER_CONFIG
    _check_adapter_config(config)
    return _checked(folder, (folder / _ADAPTER_WEIGHTS,), (config,), digest_cache)


def _file_names(folder: Path) -> list[str]:
    """Names of the files in a folder, sorted; hidden ones, which no loader reads, are left out."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in _bounded(entries, folder) if not entry.is_dir())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelFileError(
            f"No folder at {folder}. Correct the path: it names a folder with config.json and *{_WEIGHTS}."
        ) from error
    except OSError as error:
        raise unreadable(folder, error) from error
    for name in names:
        refuse_pickle(folder, name)
    return [name for name in names if not name.startswith(".")]


def refuse_pickle(folder: Path, name: str) -> None:
    """Raises ModelFileError for a name by which a loader could take a file in `folder` for a pickle."""
    if name.lower().endswith(PICKLED_SUFFIXES):
        raise ModelFileError(
            f"{folder} holds {escape_controls(name)[:200]!r}, which may be a pickle: loading it would run the "
            "program in it, so headpond refuses the folder. If it is not needed (the weights are there as "
            f"*{_WEIGHTS}), move it elsewhere. If it holds the weights, and you trust it, convert it with "
            'safetensors: save_file(torch.load("OLD", weights_only=True), "NEW.safetensors").'
        )


def _bounded(entries: Iterable[os.DirEntry[str]], folder: Path) -> Iterable[os.DirEntry[str]]:
    for count, entry in enumerate(entries):
        if count >= MAX_FILES:
            raise ModelFileError(f"{folder} holds more than {MAX_FILES} files. Give the model a folder of its own.")
        yield entry


def _checked(folder: Path, weights: tuple[Path, ...], others: tuple[Path, ...], digest_cache: Path) -> CheckpointFolder:
    """Check all weight files before the first is digested: the one takes milliseconds, the other minutes."""
    file_of: dict[str, Path] = {}
    weight_bytes = 0
    for path in weights:
        if not path.name.isprintable():
            raise ModelFileError(f"{folder} holds a file with control characters in its name. Rename it.")
        header = read_safetensors_header(path)
        weight_bytes += header.size_bytes
        for name in header.tensors:
            if name in file_of:
                raise ModelFileError(
                    f"{name[:100]!r} is in both {file_of[name]} and {path}: loaders differ in which they take. "
                    "Move the files that do not belong to this model elsewhere."
                )
            file_of[name] = path
    digests = {path.name: remembered_digest_of(path, digest_cache=digest_cache) for path in weights}
    for path in others:
        with open_regular(path) as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
    return CheckpointFolder(path=folder, weight_files=weights, weight_bytes=weight_bytes, digest=whole)


def _check_config(path: Path) -> None:
    config = read_json_object(path, max_bytes=MAX_CONFIG_BYTES)
    inner = config.get("text_config")
    for values in (config, inner if isinstance(inner, dict) else {}):
        for key, limit in _SIZE_LIMITS.items():
            size = values.get(key)
            if size is not None and not (_is_number(size) and 0 <= size <= limit):
                raise ModelFileError(
                    f"{path} is not valid: {key} is {str(size)[:50]!r}, not a number from 0 to {limit}. Fetch it again."
                )


def _check_adapter_config(path: Path) -> None:
    config = read_json_object(path, max_bytes=MAX_CONFIG_BYTES)
    kind, rank, alpha = config.get("peft_type", "LORA"), config.get("r"), config.get("lora_alpha")
    if kind != "LORA":
        raise ModelFileError(f"{path} describes an adapter of the kind {str(kind)[:50]!r}; only LORA can be loaded.")
    if type(rank) is not int or not 0 < rank <= _MAX_RANK:
        raise ModelFileError(
            f"{path} is not valid: r is {str(rank)[:50]!r}, not a number from 1 to {_MAX_RANK}. Fetch it again."
        )
    if not _is_number(alpha) or abs(alpha) > _MAX_ALPHA:
        raise ModelFileError(
            f"{path} is not valid: lora_alpha is {str(alpha)[:50]!r}, not a number up to {_MAX_ALPHA}. Fetch it again."
        )


def _check_index(path: Path) -> None:
    """A name in an index may lead nowhere: quantised models often keep the index of the original."""
    weight_map = read_json_object(path, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, Mapping):
        raise ModelFileError(f"{path} is not valid: it has no weight_map. Fetch it again, or remove it.")
    for name in set(map(str, weight_map.values())):
        if name != os.path.basename(name) or not name.endswith(_WEIGHTS) or not name.isprintable():
            raise ModelFileError(
                f"{path} is not valid: {name[:100]!r} is not the plain name of a file *{_WEIGHTS}. Fetch it again."
            )


def _is_number(value: object) -> TypeGuard[int | float]:
    # isfinite would try to make a float of any int.
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))
