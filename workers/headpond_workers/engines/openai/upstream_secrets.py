"""The secrets of one proxy: the only place where the references of its table are resolved.

They are held in memory by this process alone. What a server says passes `Secrets.message` before anybody sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from headpond.errors import ConfigError
from headpond.tables import OpenAIModel
from headpond.terminal import escape_controls
from headpond_workers import redaction

MAX_MESSAGE_CHARS = 500
MAX_READ_CHARS = 1 << 16
"""Of what a server says: more is not even looked at."""
_HEADER_TEXT = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class Secrets:
    """api_key: None sends none. headers: all of the table's, secret ones resolved. proxy: a URL. hidden: every secret
    value; none of it is ever shown."""

    api_key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    hidden: tuple[str, ...] = field(repr=False)

    def redact(self, text: str) -> str:
        """text without any secret, however it is written, and in part: see `redaction.Secrets`."""
        known = redaction.Secrets()
        for value in self.hidden:
            known.learn(value)
        return known.redact(text)

    def message(self, text: str) -> str:
        """What a server said, for people: without secrets, in one line, bounded, control characters escaped."""
        # Hidden before it is cut: half a secret would not be found.
        return " ".join(escape_controls(self.redact(text[:MAX_READ_CHARS])).split())[:MAX_MESSAGE_CHARS]


def resolve_secrets(settings: OpenAIModel) -> Secrets:
    """Read all secrets of a table. Raises ConfigError that names the key and the reference, never the value."""
    found = {name: _checked(ref.resolve(where=name), where=name) for name, ref in settings.secrets().items()}
    headers = {
        name: found.get(f"headers.{name}", value if isinstance(value, str) else "")
        for name, value in settings.headers.items()
    }
    proxy = found.get("proxy", settings.proxy if isinstance(settings.proxy, str) else None)
    hidden = list(found.values())
    if "proxy" in found:
        hidden += _proxy_credentials(found["proxy"])
    return Secrets(found.get("api_key"), headers, proxy, tuple(value for value in hidden if value))


def _checked(value: str, *, where: str) -> str:
    """A header must hold it: h11 would refuse it later, with the value in its message."""
    if not _HEADER_TEXT.fullmatch(value):
        raise ConfigError(
            "the secret holds a control character, a line break, a character beyond ASCII, or spaces around it. Write "
            "the bare secret, in one line",
            where=where,
        )
    return value


def _proxy_credentials(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError("the secret is no URL that begins with http:// or https:// and names a host", where="proxy")
    return [parts.password, unquote(parts.password)] if parts.password else []
