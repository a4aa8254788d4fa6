"""What every measurement of `storage` stands on: a SeaweedFS of its own, and headpond's side of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from child import BenchmarkError
from storage_raw import RawBucket

from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.pulls.pull import pull
from headpond_workers.checkpoints.pushes.pushing import Pushed, push
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import running_seaweed

WRITER = "the benchmark"
SERVER = "the embedded SeaweedFS, on the same machine"


@dataclass(frozen=True, slots=True)
class Storage:
    """One server, by headpond's port and by boto3 alone."""

    blobs: S3Blobs
    raw: RawBucket

    def registry(self, model: str) -> Registry:
        return Registry(self.blobs, model, writer=WRITER)

    def stored_bytes(self) -> int:
        """Of every object in the bucket."""
        return sum(size for _, size in self.blobs.list_sizes(""))


@contextmanager
def running_storage(folder: Path) -> Iterator[Storage]:
    """folder: private, for this server alone."""
    with running_seaweed(folder) as server:
        address = StorageAddress(
            server.url, server.bucket, server.region, server.access_key, server.secret_key, configured_in=WRITER
        )
        yield Storage(S3Blobs(address), RawBucket(server))


def push_version(storage: Storage, model: str, path: Path) -> Pushed:
    return push(storage.registry(model), path, Description())


def pull_version(storage: Storage, model: str, number: int, folder: Path) -> None:
    pull(storage.registry(model), number, folder, progress=lambda stage, done, total: None)


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def require_same(one: Path, other: Path) -> None:
    """Raises BenchmarkError if two files differ: then the sides did not do the same work."""
    digests = []
    for path in (one, other):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if digests[0] != digests[1]:
        raise BenchmarkError(f"{one.name} came back with other bytes.")
