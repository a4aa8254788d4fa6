"""The base of all errors."""

from __future__ import annotations

from typing import ClassVar


class HeadpondError(Exception):
    """Base of every error of this library. `str()` of it is meant for people."""

    retry: ClassVar[bool] = False
