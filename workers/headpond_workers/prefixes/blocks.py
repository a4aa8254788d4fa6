"""Names for the beginnings of a prompt: a hash at each block boundary, over all ids before it. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

BLOCK_TOKENS = 64
HASH_BYTES = 16


def block_hashes(fingerprint: str, ids: Sequence[int]) -> tuple[bytes, ...]:
    """One hash for each whole block of ids, shape (n,): that at k stands for the fingerprint and ids[: (k + 1) * 64].

    fingerprint: of what computes keys and values. Two prompts that share k hashes begin with the same k blocks.
    """
    hashes = []
    previous = fingerprint.encode()
    for begin in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = struct.pack(f"<{BLOCK_TOKENS}q", *ids[begin : begin + BLOCK_TOKENS])
        previous = hashlib.sha256(previous + block).digest()[:HASH_BYTES]
        hashes.append(previous)
    return tuple(hashes)


def prefix_name(fingerprint: str, ids: Sequence[int]) -> str:
    """32 hex digits for exactly these ids: the name of their file."""
    return hashlib.sha256(fingerprint.encode() + struct.pack(f"<{len(ids)}q", *ids)).hexdigest()[:32]
