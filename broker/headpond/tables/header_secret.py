"""Secrets that travel in the head of a request: what they may hold, and which headers hold one by their name."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from headpond.errors import ConfigError

_HEADER_TEXT = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_SECRET_NAME = re.compile(
    r"authorization|(^|[-_.])(auth|key|api-?key|token|secret|password|credentials?|cookie)$", re.IGNORECASE
)


def check_header_secret(value: str, *, where: str) -> None:
    """Raises ConfigError, without the value, for a secret that no header can hold.

    The HTTP client would refuse it later, with the value in its message.
    """
    if not _HEADER_TEXT.fullmatch(value):
        raise ConfigError(
            "the secret holds a control character, a line break, a character beyond ASCII, or spaces around it. Write "
            "the bare secret, in one line",
            where=where,
        )


def check_proxy_secret(value: str, *, where: str) -> None:
    """Raises ConfigError, without the value, for a secret that is no URL of an HTTP proxy."""
    check_header_secret(value, where=where)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("the secret is no URL that begins with http:// or https:// and names a host", where=where)


def names_secret(header: str) -> bool:
    """Whether a header of this name holds a secret, as far as its name says: X-Api-Key, Service-Token ..."""
    return _SECRET_NAME.search(header) is not None
