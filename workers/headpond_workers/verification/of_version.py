"""The version that made a result, where one did: its document in storage, and its files on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

from headpond.errors import HeadpondError, MalformedDocument, StorageUnavailable
from headpond.jobs import Result
from headpond.provenance import Provenance
from headpond.settings import Settings
from headpond_workers.checkpoints.cache import VersionCache
from headpond_workers.checkpoints.names import VERSION_NUMBER
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.verification.stored_job import StoredJob
from headpond_workers.verification.verdicts import Check, compare, unknown

NAME = "version"
WRITER = "headpond verify"
Progress = Callable[[str, int, int], None]
"""What is done, how many bytes of it, and of how many."""


class VersionFiles(contextlib.ExitStack):
    """Leaving it lets the version go that `path_for` kept on this machine."""

    def __init__(self, settings: Settings, table_name: str, *, job_model: str, progress: Progress) -> None:
        """table_name: of the model's table to verify with. job_model: of the job."""
        super().__init__()
        self._settings, self._progress = settings, progress
        self._source = settings.model(table_name).version_source
        self._model = job_model if self._source is None else self._source.name

    def __enter__(self) -> Self:
        return self

    def path_for(self, job: StoredJob) -> Path | None:
        """Where the files are of the version that made the result, pulled if they are not here; None if the table does
        not take its files from storage, or no version made it.

        Raises VersionMissing, VersionUnusable, StorageUnavailable, ModelFileError.
        """
        if self._source is None or (number := _number_of(job)) is None:
            return None
        cache = VersionCache.of(self._settings)
        try:
            held = cache.hold(self._registry(), number, self._progress)
        except StorageUnavailable:
            offline = cache.offline(self._model, number)
            if offline is None:
                raise
            held = offline
        return self.enter_context(held).path

    def check(self, made_by: Provenance, result: Result) -> Check | None:
        """Whether the version is still the one of this digest; None where no version made the result."""
        if made_by.model_digest is None or not VERSION_NUMBER.fullmatch(result.version):
            return None
        try:
            document = self._registry().read(int(result.version)).document
        except HeadpondError as error:
            return unknown(NAME, str(error), stored=made_by.model_digest)
        return compare(NAME, made_by.model_digest, document.model_digest)

    def _registry(self) -> Registry:
        return Registry(open_storage(self._settings), self._model, writer=WRITER)


def _number_of(job: StoredJob) -> int | None:
    try:
        result = job.result()
    except MalformedDocument:
        return None
    return int(result.version) if result is not None and VERSION_NUMBER.fullmatch(result.version) else None
