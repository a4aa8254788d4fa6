"""The secrets that a process has read, and texts without them. Pure."""

from __future__ import annotations

import base64
import functools
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus

MASK = "****"
FRAGMENT_CHARS = 8
"""A part of a secret of so many characters is masked wherever it stands."""
SHORT_FRAGMENT_CHARS = 4
"""A part of so many is masked in a text that holds a longer part of the same secret too."""
PIECE_CHARS = 3
"""Pieces of so many or more are masked where together, in their order, they are the whole secret."""
SHORTEST_CHARS = 4
"""A shorter secret is masked only where no letter and no digit stands beside it."""
_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=")


@dataclass(frozen=True, slots=True)
class _Known:
    """One secret in every form that it may take, folded, and the parts of these forms."""

    value: str
    plain: tuple[str, ...]
    encoded: tuple[str, ...]
    """In base64, where a character can belong to the secret and to what stands beside it."""
    encoded_parts: frozenset[str]
    short: frozenset[str]


@dataclass(slots=True)
class Secrets:
    """What must not be shown. Thread-safe. Made once, where the process is put together, and passed on.

    Masked are: a whole secret; any part of it of FRAGMENT_CHARS (8) characters or more, so that a key which is split
    over several fields of a log line is found; in a text with such a part also parts of 4; and a secret of 8 or more
    that is cut into pieces of 3 or more (the last may be shorter), if all of them are there in their order. Each as it
    is, percent-encoded, in base64 (also of a longer text, as in `Authorization: Basic`), in hexadecimal, and escaped
    as in JSON and in Python. Shorter parts stay, so that ordinary words survive; a word of 8 letters that is a part of
    a secret is masked. Case is not looked at: names of hosts and types of content, in which a server may send a key
    back, are written in small letters by whoever reads them.
    """

    _known: dict[str, _Known] = field(default_factory=dict, repr=False)
    _parts: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """Each part of FRAGMENT_CHARS characters, folded -> the secrets that have it."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def learn(self, value: str) -> None:
        """Mask this secret from now on."""
        if not value or value in self._known:
            return
        # Whoever encodes a secret may have changed its case before.
        written = {value, value.lower(), value.upper()}
        plain = _folded(form for each in written for form in _plain_forms(each))
        encoded = _folded(form for each in written for form in _base64_forms(each))
        forms = (*plain, *encoded)
        known = _Known(
            _fold(value),
            plain,
            encoded,
            frozenset(part for form in encoded for part in _parts(form, FRAGMENT_CHARS)),
            frozenset(part for form in forms for part in _parts(form, SHORT_FRAGMENT_CHARS)),
        )
        with self._lock:
            parts = dict(self._parts)
            for part in {part for form in forms for part in _parts(form, FRAGMENT_CHARS)}:
                parts[part] = (*parts.get(part, ()), known.value)
            # Replaced, never changed: readers take no lock.
            self._parts = parts
            self._known = {**self._known, value: known}

    def redact(self, text: str) -> str:
        """text, with MASK for each part of a secret."""
        if not self._known:
            return text
        folded = _fold(text)
        masked = bytearray(len(text))
        met: set[str] = set()
        for at in range(len(text) - FRAGMENT_CHARS + 1):
            owners = self._parts.get(folded[at : at + FRAGMENT_CHARS])
            if owners is not None:
                met.update(owners)
                _mark(masked, at, FRAGMENT_CHARS)
        for known in self._known.values():
            if known.value in met:
                _mark_parts(folded, masked, known.short)
            else:
                _mark_whole(folded, masked, known)
            if len(known.value) >= FRAGMENT_CHARS:
                for at, chars in _pieces(folded, known.value):
                    _mark(masked, at, chars)
        if not any(masked):
            return text
        _extend_base64(text, folded, masked, self._known)
        return _replaced(text, masked)


def _fold(text: str) -> str:
    """text without case, character by character: a place in it is a place in text."""
    return text.lower() if text.isascii() else "".join(map(_folded_char, text))


@functools.lru_cache(maxsize=4096)
def _folded_char(char: str) -> str:
    # Where one character would become two (the German sharp s), the place would be lost.
    return next(each for each in (char.casefold(), char.lower(), char) if len(each) == 1)


def _folded(forms: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({_fold(form) for form in forms}, key=lambda form: (-len(form), form)))


def _plain_forms(value: str) -> set[str]:
    raw = value.encode("utf-8", errors="surrogatepass")
    return {
        value,
        quote(raw, safe=""),
        quote(raw),
        quote_plus(raw),
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        repr(raw)[2:-1],
        ascii(value)[1:-1],
        raw.hex(),
    }


def _base64_forms(value: str) -> set[str]:
    """What stands for the secret in base64, whatever is before and behind it in the encoded text."""
    raw = value.encode("utf-8", errors="surrogatepass")
    forms = set()
    for before in range(3):
        text = base64.b64encode(b"\0" * before + raw + b"\0" * (-(before + len(raw)) % 3)).decode()
        # The first and last characters may be made of bits of the neighbours too.
        first = -(-before * 8 // 6)
        last = (before + len(raw)) * 8 // 6
        forms |= {text[first:last], text[first:last].replace("+", "-").replace("/", "_")}
    return {form for form in forms if form}


def _parts(form: str, chars: int) -> Iterator[str]:
    return (form[at : at + chars] for at in range(len(form) - chars + 1))


def _mark(masked: bytearray, at: int, chars: int) -> None:
    masked[at : at + chars] = b"\1" * chars


def _mark_parts(text: str, masked: bytearray, parts: frozenset[str]) -> None:
    for at in range(len(text) - SHORT_FRAGMENT_CHARS + 1):
        if text[at : at + SHORT_FRAGMENT_CHARS] in parts:
            _mark(masked, at, SHORT_FRAGMENT_CHARS)


def _mark_whole(text: str, masked: bytearray, known: _Known) -> None:
    """A secret, or a form of it, that is too short to have parts."""
    for form in (*known.plain, *known.encoded):
        # Of a very short secret an encoded form is a digit or two.
        if len(known.value) < SHORTEST_CHARS and form != known.value:
            continue
        at = text.find(form)
        while at >= 0:
            if len(form) >= SHORTEST_CHARS or _stands_alone(text, at, len(form)):
                _mark(masked, at, len(form))
            at = text.find(form, at + 1)


def _stands_alone(text: str, at: int, chars: int) -> bool:
    beside = text[at - 1 : at] + text[at + chars : at + chars + 1]
    return not any(char.isalnum() for char in beside)


def _pieces(text: str, value: str) -> list[tuple[int, int]]:
    """Where the pieces of a cut secret stand, in their order; empty if they do not make up all of it."""
    found: list[tuple[int, int]] = []
    done, at = 0, 0
    while done < len(value):
        chars = min(len(value) - done, FRAGMENT_CHARS)
        # The longest piece that comes next: a shorter one would match ordinary text.
        while chars and (place := text.find(value[done : done + chars], at)) < 0:
            chars -= 1
        if not chars or (chars < PIECE_CHARS and done + chars < len(value)):
            return []
        found.append((place, chars))
        done, at = done + chars, place + chars
    return found


def _extend_base64(text: str, folded: str, masked: bytearray, known: dict[str, _Known]) -> None:
    """Mask the rest of a word of base64 too: its characters beside the secret's hold some bits of it."""
    encoded = frozenset[str]().union(*(each.encoded_parts for each in known.values()))
    for at in range(len(text) - FRAGMENT_CHARS + 1):
        if folded[at : at + FRAGMENT_CHARS] in encoded:
            first, last = at, at + FRAGMENT_CHARS
            while first and text[first - 1] in _BASE64:
                first -= 1
            while last < len(text) and text[last] in _BASE64:
                last += 1
            _mark(masked, first, last - first)


def _replaced(text: str, masked: bytearray) -> str:
    out: list[str] = []
    for at, char in enumerate(text):
        if not masked[at]:
            out.append(char)
        elif not at or not masked[at - 1]:
            out.append(MASK)
    return "".join(out)
