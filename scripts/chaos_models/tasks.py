"""What one process of a run does: one task on versions of models, by the same calls as the commands make."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge import Fields, Say
from task_plan import TaskKind
from telling_blobs import TellingBlobs
from town import MODEL
from weights import Recipe, hashes_of_folder, write

from headpond.connections import RedisAddress
from headpond.errors import HeadpondError, StorageUnavailable, VersionMissing, VersionUnusable
from headpond.queue import Server
from headpond_workers.checkpoints.alias_document import AliasDocument
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.collection.gc import Collector
from headpond_workers.checkpoints.collection.scrub import scrub
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.pulls.cache import VersionCache
from headpond_workers.checkpoints.pulls.pull import pull
from headpond_workers.checkpoints.pushes.pushing import push
from headpond_workers.checkpoints.registry import Registry, now_ms
from headpond_workers.checkpoints.verify import verify
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.rollover.alias_copy import copy_alias
from headpond_workers.storage.blobs import Blobs

WHO = "chaos"
LEASE_S = 3.0
"""Of a collector: one that was killed keeps the next one waiting for no longer."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What every process of a run has. blobs: contacted by none of them yet. cache: folder that all share, and the
    most bytes in it. grace_s: of the collector."""

    blobs: Blobs
    cache: Path
    cache_bytes: int
    grace_s: float
    redis: RedisAddress | None = None
    """With workers: their queue is told of each move."""

    def perform(self, order: Fields, say: Say) -> None:
        """Do it, and say how it ended. What is no refusal and no outage is raised."""
        logging.basicConfig(format=f"%(asctime)s {order['id']} %(message)s", level=logging.INFO)
        folder = Path(order["folder"])
        folder.mkdir(parents=True)
        task = _Task(self, order, folder, TellingBlobs(self.blobs, lambda change: say("changed", what=change)))
        if order["kind"] == TaskKind.PUSH:
            write(Recipe.of(order["recipe"]), task.source)
        say("begun")
        try:
            told = task.do()
        except StorageUnavailable as error:
            say("unavailable", why=str(error))
        except Unsound as error:
            say("wrong", why=str(error))
        except HeadpondError as error:
            say("refused", error=type(error).__name__, why=str(error))
        else:
            say("done", **told)


class Unsound(Exception):
    """Something that no process should ever find in this storage."""


class _Task:
    """One order. Each method returns what is said with `done`."""

    def __init__(self, tools: Tools, order: Fields, folder: Path, blobs: Blobs) -> None:
        self._tools, self._order, self._folder, self._blobs = tools, order, folder, blobs
        self._registry = Registry(blobs, order["model"], writer=f"{WHO}:{os.getpid()}")
        self._aliases = Aliases(self._registry)

    @property
    def source(self) -> Path:
        """What is pushed."""
        return self._folder / "source"

    def do(self) -> dict[str, Any]:
        match TaskKind(self._order["kind"]):
            case TaskKind.PUSH:
                pushed = push(self._registry, self.source, Description(note=self._order["note"]))
                return {"number": pushed.number, "how": pushed.how.value}
            case TaskKind.PULL:
                pull(self._registry, self._order["number"], self._folder / "pulled", progress=_nobody)
            case TaskKind.HOLD:
                return self._hold()
            case TaskKind.PROMOTE:
                return self._moved(
                    self._aliases.move(
                        self._order["alias"], to=self._order["number"], left=self._order["left"], who=WHO
                    )
                )
            case TaskKind.ROLLBACK:
                return self._moved(self._aliases.rollback(self._order["alias"], left=None, who=WHO))
            case TaskKind.DELETE:
                delete_version(self._aliases, self._order["number"], force=self._order["force"])
            case TaskKind.VERIFY:
                verified = verify(self._registry, self._order["number"], progress=_nobody)
                if verified.error is not None:
                    raise verified.error
            case TaskKind.SCRUB:
                return self._scrub()
            case TaskKind.COLLECT:
                grace_s = self._tools.grace_s * self._order.get("grace", 1.0)
                Collector(
                    self._blobs, writer=self._registry.writer, now_ms=now_ms, grace_ms=int(grace_s * 1000),
                    lease_ms=int(LEASE_S * 1000),
                ).collect()  # fmt: skip
            case TaskKind.WORKER | TaskKind.PERSISTER | TaskKind.SERVER as other:
                raise ValueError(f"{other} is no task of a process")
        return {}

    def _hold(self) -> dict[str, Any]:
        """Take a version from the cache, and tell what stands there while it is held."""
        cache = VersionCache(
            self._tools.cache / "versions", self._tools.cache_bytes, storage="chaos",
            digests=self._tools.cache / "digests",
        )  # fmt: skip
        number = self._order.get("number")
        if number is not None:
            return self._held(cache, number)
        alias = self._order["alias"]
        while True:
            before = self._aliases.get(alias)
            if before is None:
                raise VersionMissing(f"{self._registry.model}@{alias}", "nothing was promoted yet")
            # As whoever serves an alias does: a deletion that was cut off is ended first.
            version = self._aliases.resolve(alias)
            try:
                if version.state is not VersionState.COMPLETE:
                    raise VersionUnusable(f"{self._registry.model}@{version.number}", f"it is {version.state}")
                return self._held(cache, version.number)
            except VersionUnusable as error:
                after = self._aliases.get(alias)
                if after is not None and after.document.to == version.number and self._is_lost(version.number):
                    raise Unsound(f"{alias} names version {version.number}: {error}") from error

    def _is_lost(self, number: int) -> bool:
        """Whether it is neither complete nor in a deletion that its alias forbids."""
        return self._registry.read(number).document.state not in (VersionState.COMPLETE, VersionState.DELETING)

    def _held(self, cache: VersionCache, number: int) -> dict[str, Any]:
        with cache.hold(self._registry, number, _nobody) as held:
            # Whatever the cache calls the path of a version: all of them here are folders.
            return {"number": number, "files": hashes_of_folder(held.path)}

    def _moved(self, document: AliasDocument) -> dict[str, Any]:
        """As the commands do: storage first, then the queue's copy."""
        if self._tools.redis is not None:
            with closing(Server(self._tools.redis)) as server:
                copy_alias(server.queue(MODEL, storage=True), document)
        return {"seq": document.seq, "to": document.to}

    def _scrub(self) -> dict[str, Any]:
        """Nothing here is damaged, whoever deletes and collects meanwhile."""
        scrubbed = scrub(self._blobs, writer=self._registry.writer)
        if scrubbed.findings:
            raise Unsound(f"scrub found damage: {scrubbed.findings}")
        return {}


def _nobody(stage: str, done: int, total: int) -> None:
    """Is told of progress."""
