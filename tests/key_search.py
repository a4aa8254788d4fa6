"""Looks for secrets in all that a deployment writes, holds or shows: raw, and in the ways in which text is written."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import boto3
import psutil
import redis
from botocore.config import Config

Place = tuple[str, bytes]
"""Where something stands, and what."""


def forms(key: str) -> set[bytes]:
    """How a key may be written inside of a larger text."""
    raw = key.encode()
    texts = {
        key, quote(key), quote(key, safe=""), quote_plus(key), json.dumps(key)[1:-1], repr(key)[1:-1],
        json.dumps(json.dumps(key)[1:-1])[1:-1], key.replace("%", "%%"), raw.hex(), raw.hex().upper(),
    }  # fmt: skip
    found = {text.encode() for text in texts}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            # Amid other bytes a text is written in one of three ways, of which the ends depend on its neighbours.
            encoded = encode(b"\0" * before + raw)
            found.add(encoded[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6])
    return found


@dataclass
class KeySearch:
    """keys: by their names."""

    keys: dict[str, str]

    def found(self, places: Iterable[Place]) -> set[tuple[str, str]]:
        """(name of the key, place) for each place that holds one."""
        wanted = {name: forms(key) for name, key in self.keys.items()}
        return {
            (name, where)
            for where, content in places
            for name, ways in wanted.items()
            if any(way in content for way in ways)
        }


def files(folder: Path) -> Iterator[Place]:
    """Every regular file below a folder, and every name."""
    for path in sorted(folder.rglob("*")):
        yield f"name of {path}", str(path).encode()
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                yield str(path), path.read_bytes()


def environments(processes: Iterable[psutil.Process]) -> Iterator[Place]:
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield f"environment of {process.pid}", Path(f"/proc/{process.pid}/environ").read_bytes()


def command_lines() -> Iterator[Place]:
    """Of every process of the machine, from /proc and from ps."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield f"command line of {folder.name}", (folder / "cmdline").read_bytes()
    listed = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=True)  # noqa: S607
    yield "ps", listed.stdout


def redis_values(url: str) -> Iterator[Place]:
    """Every key and value of every type, and what the server says of itself."""
    client: Any = redis.Redis.from_url(url)
    readers = {
        b"string": lambda key: client.get(key),
        b"hash": lambda key: client.hgetall(key),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": lambda key: client.smembers(key),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": lambda key: client.xrange(key),
    }
    for key in client.scan_iter(count=1000):
        yield f"redis key {key!r}", key
        value = readers[client.type(key)](key)
        yield f"redis value of {key!r}", b"\n".join(_leaves(value))
    yield "redis clients", str(client.client_list()).encode()
    client.close()


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(name)
            yield from _leaves(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _leaves(item)


def s3(storage: Any) -> Any:
    """A client of a deployment's storage."""
    return boto3.client(
        "s3", endpoint_url=storage.endpoint_url, region_name="us-east-1", aws_access_key_id=storage.access_key,
        aws_secret_access_key=storage.secret_key, config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip


def s3_objects(storage: Any) -> Iterator[Place]:
    """Every object of every bucket, with its name and metadata."""
    client = s3(storage)
    for bucket in client.list_buckets()["Buckets"]:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"]):
            for entry in page.get("Contents", []):
                reply = client.get_object(Bucket=bucket["Name"], Key=entry["Key"])
                yield f"s3 {entry['Key']}", reply["Body"].read() + repr((entry, reply["Metadata"])).encode()
