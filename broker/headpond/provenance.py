"""What made a result: model, adapters, engine, prompt, sampling, seed, each by a digest where it is large. No I/O.

Two results with one provenance were asked alike of models that are alike. `headpond verify` says whether what is stored
and installed now still gives it.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headpond.errors import MalformedDocument

SCHEMA = "provenance"
MAX_ADAPTERS = 64
MAX_SETTINGS = 64
MAX_WORD_CHARS = 300
"""Of a name or a digest."""


@dataclass(frozen=True, slots=True)
class AdapterDigest:
    """A LoRA adapter by its name in the model's table. digest: SHA-256 of its file or folder, in hex; None if its
    engine does not say."""

    name: str
    digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made one result. A digest is SHA-256 in hex, and None where nobody knows it.

    engine: its name in the configuration. fingerprint: of the loaded engine: all that decides its output.
    weights_digest: of the files that it loaded, as that engine digests them. model_digest: of the version in storage;
    None of a model that is no version. adapters: that were applied; empty for the bare model. request_digest: of what
    was asked, and of the version that it was pinned to; 32 hex digits. prompt_digest: `digest_of_ids` of the
    rendered prompt; None of a proxy, and of a job that embeds. sampling: `temperature` and `top_p`, and each other
    setting that was not at its default; empty of a job that embeds. seed: the effective one; None of a job that embeds.
    upstream_model: of a proxy, the model that its server was asked for.
    """

    engine: str
    fingerprint: str
    weights_digest: str | None = None
    model_digest: str | None = None
    adapters: tuple[AdapterDigest, ...] = ()
    request_digest: str | None = None
    prompt_digest: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seed: int | None = None
    upstream_model: str | None = None

    def fields(self) -> dict[str, Any]:
        """As a result document has it, and JSON too."""
        return {
            "engine": self.engine,
            "fingerprint": self.fingerprint,
            "weights_digest": self.weights_digest,
            "model_digest": self.model_digest,
            "adapters": [[adapter.name, adapter.digest] for adapter in self.adapters],
            "request_digest": self.request_digest,
            "prompt_digest": self.prompt_digest,
            "sampling": dict(self.sampling),
            "seed": self.seed,
            "upstream_model": self.upstream_model,
        }

    @classmethod
    def of_fields(cls, fields: object) -> Provenance:
        """Raises MalformedDocument."""
        if not isinstance(fields, dict):
            raise MalformedDocument(SCHEMA, f"it is a {type(fields).__name__}")
        seed, sampling = fields.get("seed"), fields.get("sampling", {})
        if seed is not None and (type(seed) is not int or not 0 <= seed < 1 << 64):
            raise MalformedDocument(SCHEMA, f"the seed is {str(seed)[:40]}")
        if not isinstance(sampling, dict) or len(sampling) > MAX_SETTINGS:
            raise MalformedDocument(SCHEMA, "sampling is no map of settings")
        return cls(
            engine=_word(fields, "engine") or "",
            fingerprint=_word(fields, "fingerprint") or "",
            weights_digest=_word(fields, "weights_digest"),
            model_digest=_word(fields, "model_digest"),
            adapters=_adapters(fields.get("adapters", [])),
            request_digest=_word(fields, "request_digest"),
            prompt_digest=_word(fields, "prompt_digest"),
            sampling=sampling,
            seed=seed,
            upstream_model=_word(fields, "upstream_model"),
        )


def digest_of_ids(ids: Sequence[int]) -> str:
    """SHA-256, in hex, of token ids, shape (n,): 4 bytes each, unsigned, little-endian, one after the other.

    Raises OverflowError for a number that is no such id.
    """
    numbers = array("I", ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    return hashlib.sha256(numbers).hexdigest()


def _word(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > MAX_WORD_CHARS):
        raise MalformedDocument(SCHEMA, f"{name} is no text of at most {MAX_WORD_CHARS} characters")
    return value


def _adapters(listed: object) -> tuple[AdapterDigest, ...]:
    if not isinstance(listed, list) or len(listed) > MAX_ADAPTERS:
        raise MalformedDocument(SCHEMA, "adapters is no short array")
    found = []
    for each in listed:
        if not isinstance(each, list) or len(each) != 2 or not isinstance(each[0], str):
            raise MalformedDocument(SCHEMA, "an adapter is no name with a digest")
        named = {"name": each[0], "digest": each[1]}
        found.append(AdapterDigest(_word(named, "name") or "", _word(named, "digest")))
    return tuple(found)
