"""Versions of the scripted engine in a storage, real workers that serve them, and producers that never stop asking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from conftest import Deployment, WorkerChild, eventually
from headpond import Client, Job, JobState, Result
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.switching import Switch
from headpond.tables import ScriptedModel
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.checkpoints.alias_document import AliasDocument
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.pushes.pushing import push
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.detokenizer import Detokenizer
from headpond_workers.engines.protocol import Sequence, Verdict
from headpond_workers.engines.scripted import ScriptedEngine
from headpond_workers.rollover.alias_copy import copy_alias
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess

READY_S = 60.0
SEED = 7
MAX_TOKENS = 40
TABLE = """
[models.chat]
engine = "scripted"
source = "s3:chat@prod"
tokens_per_s = 200
lease_s = 1
{more}
"""


@dataclass
class Shelf:
    """A bucket of a test's own with versions of `chat`, and the workers that serve them."""

    deployment: Deployment
    seaweed: SeaweedProcess
    table: str = TABLE
    """Of the model, with a place for more lines."""
    bucket: str = field(default_factory=lambda: f"shelf-{uuid.uuid4().hex[:12]}")
    folders: dict[str, Path] = field(default_factory=dict)
    """Of what was pushed, or files, by version."""
    digests: dict[str, str] = field(default_factory=dict)
    """The same, as storage has them."""
    _answers: dict[tuple[str, str, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.configure()
        self.blobs.ensure_bucket()

    @cached_property
    def blobs(self) -> S3Blobs:
        seaweed = self.seaweed
        return S3Blobs(
            StorageAddress(seaweed.url, self.bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "a test")
        )

    @property
    def registry(self) -> Registry:
        return Registry(self.blobs, "chat", writer="a test")

    @property
    def aliases(self) -> Aliases:
        return Aliases(self.registry)

    @property
    def environment(self) -> dict[str, str]:
        """The cache of versions is the test's own."""
        return {"HEADPOND_CACHE": str(self.deployment.folder / "cache")}

    def configure(self, more: str = "", *, endpoint: str | None = None) -> None:
        """more: lines of the table. endpoint: of the storage, if not its own."""
        folder = self.deployment.folder
        for name, value in (("access", self.seaweed.access_key), ("secret", self.seaweed.secret_key)):
            path = folder / f"{name}-key"
            path.touch(mode=0o600)
            path.write_text(value)
        storage = (
            f'[storage]\nendpoint_url = "{endpoint or self.seaweed.url}"\nbucket = "{self.bucket}"\n'
            f'region = "{self.seaweed.region}"\naccess_key = {{file = "{folder}/access-key"}}\n'
            f'secret_key = {{file = "{folder}/secret-key"}}\n'
        )
        self.deployment.configure(self.table.format(more=more), extra=storage)

    def push(self, **keys: object) -> str:
        """A version that differs from all others. keys: of scripted.json. Returns its name."""
        folder = self.deployment.folder / f"pushed-{len(self.folders) + 1}"
        folder.mkdir()
        (folder / "scripted.json").write_text(json.dumps({"salt": folder.name, **keys}))
        return self.push_path(folder)

    def push_path(self, path: Path) -> str:
        """A version of what stands there. Returns its name."""
        pushed = push(self.registry, path, Description())
        version = str(pushed.number)
        self.folders[version], self.digests[version] = path, pushed.document.model_digest
        return version

    def promote(self, version: str) -> AliasDocument:
        """In storage, and in the queue."""
        moved = self.aliases.move("prod", to=int(version), left=None, who="a test")
        copy_alias(self.deployment.queue("chat"), moved)
        return moved

    def rollback(self) -> AliasDocument:
        moved = self.aliases.rollback("prod", left=None, who="a test")
        copy_alias(self.deployment.queue("chat"), moved)
        return moved

    def alias(self) -> AliasDocument:
        at = self.aliases.get("prod")
        assert at is not None
        return at.document

    def switch(self) -> Switch:
        switch = self.deployment.queue("chat").read_switch()
        assert switch is not None
        return switch

    def start_persister(self) -> WorkerChild:
        """Nothing is claimed before one has been there."""
        log = self.deployment.folder / "persister.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "headpond_workers.persister", "--config", str(self.deployment.config)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.deployment.folder, env=os.environ,
            )  # fmt: skip
        child = WorkerChild(process, log)
        self.deployment.children.append(child)
        return child

    def start(self, *instances: str, ready: bool = True) -> list[WorkerChild]:
        """Workers, all at once."""
        children = [
            self.deployment.start("chat", instance, ready=False, environment=self.environment) for instance in instances
        ]
        if ready:
            eventually(
                lambda: {row.pid for row in self.rows() if row.state is WorkerState.READY} >= {c.pid for c in children},
                deadline_s=READY_S, what=f"{', '.join(instances)} being ready",
            )  # fmt: skip
        return children

    def rows(self) -> list[WorkerRow]:
        return self.deployment.queue("chat").workers()

    def serving(self) -> list[str]:
        """The version of each worker that is ready, by instance."""
        return [row.version for row in self.rows() if row.state is WorkerState.READY]

    def await_served(self, version: str, *, workers: int) -> None:
        eventually(
            lambda: self.serving() == [version] * workers, deadline_s=READY_S, what=f"{workers} workers of {version}"
        )

    def answer(self, version: str, prompt: str, *, max_tokens: int = MAX_TOKENS) -> str:
        """What this version says to a prompt, from an engine in this process."""
        known = self._answers.get((version, prompt, max_tokens))
        if known is None:
            known = self._answers[version, prompt, max_tokens] = _answer_of(self.folders[version], prompt, max_tokens)
        return known

    def check(self, result: Result, prompt: str, *, max_tokens: int = MAX_TOKENS) -> str:
        """That one version made all of it: the one that the result names. Returns that version."""
        assert result.state is JobState.FINISHED, (result.id, result.state, result.error)
        assert result.text == self.answer(result.version, prompt, max_tokens=max_tokens), (result.id, result.version)
        assert result.provenance is not None
        assert result.provenance.model_digest == self.digests[result.version]
        return result.version


def _answer_of(folder: Path, prompt: str, max_tokens: int) -> str:
    settings = json.loads((folder / "scripted.json").read_text())
    table = ScriptedModel.model_validate({"engine": "scripted", "path": folder, "tokens_per_s": 1e6})
    if "tokens_per_s" in settings:
        # As fast as it can be here.
        copy = folder.parent / f"{folder.name}-fast"
        copy.mkdir(exist_ok=True)
        (copy / "scripted.json").write_text(json.dumps({**settings, "tokens_per_s": 1e6}))
        table = table.model_copy(update={"path": copy})
    engine = ScriptedEngine(table)
    ids: list[int] = []

    def emit(more: Iterable[int]) -> Verdict:
        ids.extend(more)
        return Verdict.GO

    try:
        rendered = tuple(engine.render([Message(role="user", content=prompt)]))
        engine.generate(Sequence(rendered, (), max_tokens, Sampling(), SEED), emit)
        return "".join(Detokenizer(engine.token_bytes).feed(ids).pieces)
    finally:
        engine.close()


class Producer(threading.Thread):
    """Submits jobs one after the other, a few of them at a time, until it is told to stop."""

    def __init__(self, client: Client, name: str, *, at_once: int = 3) -> None:
        super().__init__(daemon=True)
        self._client, self._name, self._at_once = client, name, at_once
        self._over = threading.Event()
        self.jobs: list[tuple[Job, str]] = []
        """Each with its prompt, in order."""
        self.results: list[Result] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            number = 0
            while not self._over.is_set():
                batch = []
                for _ in range(self._at_once):
                    prompt = f"Tell me of subject {number % 7}."
                    job = self._client.submit(
                        "chat", prompt, id=f"chat/{self._name}-{number}", seed=SEED, max_tokens=MAX_TOKENS
                    )
                    batch.append(job)
                    self.jobs.append((job, prompt))
                    number += 1
                self.results += [job.result(timeout=READY_S) for job in batch]
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error

    def stop(self) -> list[tuple[Result, str]]:
        """Every result, with its prompt. Fails the test if a job failed."""
        self._over.set()
        self.join(READY_S)
        assert not self.is_alive()
        assert self.error is None, repr(self.error)
        return list(zip(self.results, (prompt for _, prompt in self.jobs), strict=True))


@contextmanager
def producing(client: Client, count: int) -> Iterator[list[Producer]]:
    """So many producers, stopped at the end."""
    producers = [Producer(client, f"p{number}") for number in range(count)]
    try:
        yield producers
    finally:
        for producer in producers:
            producer._over.set()


def by_version(shelf: Shelf, producers: Iterable[Producer]) -> dict[str, int]:
    """How many jobs each version answered, after checking that none failed and each is of one version."""
    counts: dict[str, int] = {}
    for producer in producers:
        for result, prompt in producer.stop():
            version = shelf.check(result, prompt)
            counts[version] = counts.get(version, 0) + 1
    return counts
