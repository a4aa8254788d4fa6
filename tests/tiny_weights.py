"""Weight files of some kilobytes or megabytes, made of given bytes."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path

ALIGNMENT = 32
F32 = 0


def noise(seed: int, size: int) -> bytes:
    """The same for the same seed."""
    return random.Random(seed).randbytes(size)


def safetensors(tensors: Mapping[str, bytes], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """A file with these tensors, in this order, of single bytes."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, content in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": [at, at + len(content)]}
        at += len(content)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(tensors.values())


def gguf(tensors: Mapping[str, bytes], *, metadata: Mapping[str, str] | None = None, kind: int = F32) -> bytes:
    """A file with these tensors, in this order. kind: the number of their type; F32 takes multiples of four bytes."""
    pairs = {"general.architecture": "llama", **(metadata or {})}
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs))
    for key, value in pairs.items():
        head += _text(key) + struct.pack("<I", 8) + _text(value)
    data = b""
    for name, content in tensors.items():
        data += bytes(-len(data) % ALIGNMENT)
        head += _text(name) + struct.pack("<IQIQ", 1, len(content) // 4 or 1, kind, len(data))
        data += content
    return head + bytes(-len(head) % ALIGNMENT) + data


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def write_model(folder: Path, tensors: Mapping[str, bytes], *, metadata: Mapping[str, str] | None = None) -> Path:
    """A folder in Hugging Face's layout with one weight file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 100}')
    (folder / "model.safetensors").write_bytes(safetensors(tensors, metadata=metadata))
    return folder
