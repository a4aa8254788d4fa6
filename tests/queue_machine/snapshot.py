"""All that the server holds of one queue, by one EVAL. Streams give what came after a given entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgpack

from headpond.wire import RunRow, unpack_run

SCRIPT = """
local prefix, seen, all = ARGV[1], {}, {}
for i = 2, #ARGV, 2 do seen[ARGV[i]] = ARGV[i + 1] end
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
  local name, kind, value = string.sub(key, #prefix + 1), redis.call('TYPE', key).ok, nil
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then value = redis.call('SMEMBERS', key)
  elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
  else
    local after = seen[name]
    value = { redis.call('XLEN', key), redis.call('XRANGE', key, after and '(' .. after or '-', '+') }
  end
  all[#all + 1], all[#all + 2] = name, value
end
return cmsgpack.pack(all)
"""
_NOTHING: Mapping[str, Any] = {}

read_row = lru_cache(maxsize=512)(unpack_run)
"""A run row; most of them are the same as a step before."""


@dataclass(frozen=True, slots=True)
class Stream:
    """length: of all of it. entries: (id, field, payload), those after what was asked for."""

    length: int
    entries: tuple[tuple[str, str, bytes], ...]


@dataclass(slots=True)
class Snapshot:
    """One moment of a queue. Equal if the server holds the same."""

    raw: bytes
    hashes: dict[str, dict[str, bytes]] = field(default_factory=dict)
    zsets: dict[str, dict[str, float]] = field(default_factory=dict)
    sets: dict[str, frozenset[str]] = field(default_factory=dict)
    lists: dict[str, list[bytes]] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    run: dict[str, bytes] = field(default_factory=dict)

    def meta(self, name: str) -> str:
        return self.hashes["meta"].get(name, b"").decode()

    def number(self, name: str) -> float:
        return float(self.hashes["meta"].get(name, b"0"))

    def zset(self, name: str) -> Mapping[str, float]:
        return self.zsets.get(name, _NOTHING)

    def hash(self, name: str) -> Mapping[str, bytes]:
        return self.hashes.get(name, _NOTHING)

    def row(self, job_id: str) -> RunRow:
        return read_row(self.run[job_id])

    def ready(self) -> Iterator[tuple[str, str, Mapping[str, float]]]:
        """Lane, band, and its ids by score."""
        for name, members in self.zsets.items():
            if name.startswith("ready:"):
                lane, _, band = name[6:].rpartition(":")
                yield lane, band, members

    def lane(self, lane: str, band: str) -> Mapping[str, float]:
        return self.zsets.get(f"ready:{lane}:{band}", _NOTHING)

    def has_jobs(self, lane: str) -> bool:
        return any(f"ready:{lane}:{band}" in self.zsets for band in ("interactive", "normal", "batch"))

    def has_token(self, lane: str) -> bool:
        return f"wake:{lane}" in self.lists

    def same(self, other: Snapshot) -> bool:
        """Whether both hold the same, read after the same stream entries."""
        return self.raw == other.raw or (
            self.hashes == other.hashes
            and self.zsets == other.zsets
            and self.sets == other.sets
            and self.lists == other.lists
            and self.streams == other.streams
        )

    def differences(self, other: Snapshot) -> dict[str, tuple[Any, Any]]:
        """What differs, by key: here, there."""
        found: dict[str, tuple[Any, Any]] = {}
        for kind in ("hashes", "zsets", "sets", "lists", "streams"):
            here, there = getattr(self, kind), getattr(other, kind)
            for name in {*here, *there}:
                if here.get(name) != there.get(name):
                    found[name] = here.get(name), there.get(name)
        return found


def _pairs(flat: list[bytes]) -> Iterator[tuple[str, bytes]]:
    return ((name.decode(), value) for name, value in zip(flat[::2], flat[1::2], strict=True))


def parse(raw: bytes) -> Snapshot:
    """From the reply of SCRIPT. The kind of a key follows from its name."""
    snapshot = Snapshot(raw)
    flat = msgpack.unpackb(raw, raw=True)
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        name = key.decode()
        if name in _HASHES or name.startswith(_HASHES_OF_BOOTS):
            snapshot.hashes[name] = dict(_pairs(value))
        elif name == "lanes":
            snapshot.sets[name] = frozenset(member.decode() for member in value)
        elif name.startswith(("wake:", "notice:", "session:")):
            snapshot.lists[name] = value
        elif name in ("journal", "commits") or name.startswith("events:"):
            snapshot.streams[name] = Stream(value[0], tuple(_entry(entry) for entry in value[1] or ()))
        else:
            snapshot.zsets[name] = {member: float(score) for member, score in _pairs(value)}
    snapshot.run = snapshot.hashes.get("run", {})
    return snapshot


_HASHES = frozenset(
    {
        "meta", "data", "run", "result", "workers", "spec", "attempts", "weights", "switch", "outcomes", "sessions",
        "turns", "links",
    }
)  # fmt: skip
_HASHES_OF_BOOTS = ("held:", "struck:")


def _entry(entry: list[Any]) -> tuple[str, str, bytes]:
    """A journal entry has three fields; its kind and id stand for it."""
    entry_id, fields = entry[0].decode(), entry[1]
    if len(fields) == 2:
        return entry_id, fields[0].decode(), fields[1]
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return entry_id, named[b"k"].decode(), named[b"i"]
