"""Model files for `storage`: safetensors of seeded noise, of which a share of the tensors can be changed. Nothing could
load them: what is measured is bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

_ITEM_BYTES = 2
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """tensors: bytes of each."""

    tensors: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return sum(self.tensors)


def draw_shape(size_bytes: int, draw: random.Random) -> Shape:
    """Tensors as a transformer has them, in blocks: of 64 KiB to 6 MiB, `size_bytes` together or a little more."""
    kinds = (64 << 10, 512 << 10, MIB, 2 * MIB, 6 * MIB)
    sizes: list[int] = []
    while sum(sizes) < size_bytes:
        sizes.append(draw.choice(kinds))
    return Shape(tuple(sizes))


def draw_changed(shape: Shape, share: float, draw: random.Random) -> tuple[int, ...]:
    """Tensors that together have about `share` of all bytes: no fewer."""
    order = list(range(len(shape.tensors)))
    draw.shuffle(order)
    chosen: list[int] = []
    while sum(shape.tensors[n] for n in chosen) < share * shape.size_bytes:
        chosen.append(order[len(chosen)])
    return tuple(sorted(chosen))


def write_model(
    path: Path, shape: Shape, *, seed: str, changed: Collection[int] = (), notes: Sequence[str] = ()
) -> Path:
    """A safetensors file. changed: tensors that have other bytes than those of the seed. notes: lines of its metadata,
    which make its header longer."""
    header: dict[str, object] = {}
    if notes:
        header["__metadata__"] = {f"note-{n}": note for n, note in enumerate(notes)}
    at = 0
    for n, size in enumerate(shape.tensors):
        header[f"model.layers.{n:04d}.weight"] = {
            "dtype": "F16", "shape": [size // _ITEM_BYTES], "data_offsets": [at, at + size],
        }  # fmt: skip
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for n, size in enumerate(shape.tensors):
            noise = random.Random(f"{seed}:{n}:{'new' if n in changed else 'old'}")  # noqa: S311 - a workload
            file.write(noise.randbytes(size))
    return path
