"""Bytes as people read them."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def shown_size(count: float) -> str:
    """Such as `517 B`, `1.3 MiB`, `24 GiB`."""
    power = 0
    while count >= 1024 and power < len(_UNITS) - 1:
        count /= 1024
        power += 1
    return f"{count:.1f} {_UNITS[power]}" if power and count < 10 else f"{count:.0f} {_UNITS[power]}"
