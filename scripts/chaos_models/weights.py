"""Small models that follow from numbers: which bytes each file has is known without keeping them.

A model is a safetensors file, a configuration, and a file of no known format. Versions share most of their tensors, as
versions of real models do. `large` has a tensor that is an object of its own in storage; all else goes into packs.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

KIB = 1 << 10
SHAPES = {
    "chat": ((160, 96, 96, 64, 64, 40, 40, 24, 8, 4), 300),
    "draft": ((160, 96, 96, 64, 64, 40, 40, 24, 8, 4), 300),
    "large": ((5 * KIB, 600, 320, 96, 16), 700),
    "answers": ((96, 64, 16), 20),
}
"""Of each model: KiB of its tensors, and of its file of no known format. draft may have the very files of chat."""
ANSWERS = "answers"
"""A model that workers serve: the scripted engine's tokens follow from its files too."""
MODELS = tuple(model for model in SHAPES if model != ANSWERS)
TENSORS, SETTINGS, OTHER, SCRIPT = "model.safetensors", "config.json", "tables/vocabulary.dat", "scripted.json"
CHANGED_SHARE = 0.2
"""How many of its tensors a new version changes, on average; one at least."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a version's files are made from. seeds: of each tensor. other: of the file of no known format."""

    model: str
    seeds: tuple[int, ...]
    other: int

    @classmethod
    def of(cls, fields: Sequence[object]) -> Recipe:
        """From `told`."""
        model, seeds, other = fields
        if not isinstance(model, str) or not isinstance(seeds, list) or not isinstance(other, int):
            raise ValueError(f"no recipe: {fields!r}")
        return cls(model, tuple(seeds), other)

    def told(self) -> list[object]:
        """As JSON holds it."""
        return [self.model, list(self.seeds), self.other]


def first_recipe(model: str, rng: random.Random) -> Recipe:
    sizes, _ = SHAPES[model]
    return Recipe(model, tuple(rng.getrandbits(40) for _ in sizes), rng.getrandbits(40))


def changed(recipe: Recipe, rng: random.Random) -> Recipe:
    """The version after `recipe`: some of its tensors are others, and sometimes its other file."""
    seeds = list(recipe.seeds)
    picked = {rng.randrange(len(seeds)), *(n for n in range(len(seeds)) if rng.random() < CHANGED_SHARE / 2)}
    for number in picked:
        seeds[number] = rng.getrandbits(40)
    return replace(recipe, seeds=tuple(seeds), other=rng.getrandbits(40) if rng.random() < 0.3 else recipe.other)


def copied(recipe: Recipe, model: str) -> Recipe:
    """The same files as versions of another model of the same shape."""
    return replace(recipe, model=model)


def files(recipe: Recipe) -> Iterator[tuple[str, bytes]]:
    """Path inside the version, and bytes, of each file."""
    sizes, other_kib = SHAPES[recipe.model]
    bodies = [_noise(seed, size * KIB) for seed, size in zip(recipe.seeds, sizes, strict=True)]
    header, at = {}, 0
    for number, body in enumerate(bodies):
        header[f"layers.{number}.weight"] = {
            "dtype": "U8", "shape": [len(body) // 64, 64], "data_offsets": [at, at + len(body)],
        }  # fmt: skip
        at += len(body)
    head = json.dumps(header).encode()
    yield TENSORS, b"".join([len(head).to_bytes(8, "little"), head, *bodies])
    yield SETTINGS, json.dumps({"layers": len(bodies), "vocabulary": recipe.other}, indent=1).encode()
    yield OTHER, _noise(recipe.other, other_kib * KIB)
    if recipe.model == ANSWERS:
        yield SCRIPT, json.dumps({"salt": f"{recipe.seeds} {recipe.other}"}).encode()


def write(recipe: Recipe, folder: Path) -> None:
    """All of its files, into a folder that is made."""
    for path, body in files(recipe):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)


@lru_cache(maxsize=4096)
def hashes(recipe: Recipe) -> tuple[tuple[str, int, str], ...]:
    """Path, bytes and SHA-256 of each file, by path."""
    return tuple(sorted((path, len(body), hashlib.sha256(body).hexdigest()) for path, body in files(recipe)))


def hashes_of_folder(folder: Path) -> tuple[tuple[str, int, str], ...]:
    """The same of what stands on disk. Raises OSError."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            body = b"" if path.is_symlink() else path.read_bytes()
            found.append((path.relative_to(folder).as_posix(), len(body), hashlib.sha256(body).hexdigest()))
    return tuple(sorted(found))


@lru_cache(maxsize=64)
def _noise(seed: int, size: int) -> bytes:
    return random.Random(f"noise:{seed}").randbytes(size)  # noqa: S311 - it has to be repeatable
