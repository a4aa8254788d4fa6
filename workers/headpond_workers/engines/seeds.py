"""Seeds of requests to llama.cpp that begin amid an answer."""

from __future__ import annotations

import hashlib

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp takes this one seed for 'choose one yourself'."""


def seed_at(seed: int, position: int) -> int:
    """The seed of a request that begins after `position` generated ids. At 0 it is the seed itself.

    A generator that began anew with the same seed would repeat the first draws later in the text.
    """
    if position:
        seed = int.from_bytes(hashlib.sha256(f"{seed}:{position}".encode()).digest()[:4], "big")
    return _RANDOM_SEED - 1 if seed == _RANDOM_SEED else seed
