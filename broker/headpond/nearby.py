"""Which of the known names was probably meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'slots'?`, or nothing if nothing is near."""
    close = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
