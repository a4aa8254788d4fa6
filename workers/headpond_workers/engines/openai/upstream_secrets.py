"""The secrets of one proxy: the only place where the references of its table are resolved.

They are held in memory by this process alone. What a server says passes `Secrets.message` before anybody sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from headpond.tables import OpenAIModel
from headpond.terminal import escape_controls
from headpond_workers import redaction

MAX_MESSAGE_CHARS = 500
MAX_READ_CHARS = 1 << 16
"""Of what a server says: more is not even looked at."""


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
    found = {name: ref.resolve(where=name) for name, ref in settings.secrets().items()}
    for name, value in found.items():
        settings.check_secret(name, value)
    headers = {
        name: found.get(f"headers.{name}", value if isinstance(value, str) else "")
        for name, value in settings.headers.items()
    }
    proxy = found.get("proxy", settings.proxy if isinstance(settings.proxy, str) else None)
    hidden = list(found.values())
    if "proxy" in found:
        hidden += _proxy_credentials(found["proxy"])
    return Secrets(found.get("api_key"), headers, proxy, tuple(value for value in hidden if value))


def _proxy_credentials(url: str) -> list[str]:
    password = urlsplit(url).password
    return [password, unquote(password)] if password else []
