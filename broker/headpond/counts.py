"""Counts in words. Pure."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 worker`, `3 workers`, `0 workers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
