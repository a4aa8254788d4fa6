"""The persister process: ticks each second, and runs the persistence actor on a dramatiq Worker. Where the Valkey is
embedded it also brings the append-only file to the disk.

    python -m headpond_workers.persister --config headpond.toml

SIGTERM: what the journals hold is committed once more, then it leaves. Exit codes: 0; 78 (EX_CONFIG) no storage is
configured, or the configuration is wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import dramatiq

from headpond.connections import redis_of
from headpond.errors import ConfigError, HeadpondError, QueueError, ServiceUnavailable
from headpond.keys import PERSISTENCE_QUEUE
from headpond.operations import QueuePolicy
from headpond.queue import Server
from headpond.settings import (
    EMBEDDED_SEAWEED_DATA,
    EMBEDDED_SEAWEED_FOLDER,
    EMBEDDED_VALKEY_FOLDER,
    SPOOL_FOLDER,
    Settings,
)
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.naming.identity import identity_or_passing
from headpond_workers.persistence.actor import LEASE_S, RETENTION_S, Persistence
from headpond_workers.persistence.aof_sync import AofSync
from headpond_workers.persistence.spooling import SpoolPolicy
from headpond_workers.persistence.storage_sync import StorageSync
from headpond_workers.prefixes.folders import kv_folder
from headpond_workers.prefixes.purges import PurgedPrefixes
from headpond_workers.prefixes.uploads import PrefixUploader, PrefixUploads
from headpond_workers.redaction import Secrets
from headpond_workers.rollover.alias_follower import AliasFollower
from headpond_workers.secret_filter import start_logging
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import storage_of
from headpond_workers.supervised import settings_of_process

logger = logging.getLogger(__name__)

EX_CONFIG = 78
INTERVAL_S = 1.0
GB = 1_000_000_000
BUCKET_WAIT_S = 3.0
"""For a storage that answers, as it nearly always does: so the first commit finds its bucket."""


class Persister:
    """The composition root: wires settings, storage, broker and signals."""

    def __init__(self, settings: Settings, *, secrets: Secrets) -> None:
        """secrets: learns those of the servers."""
        self._deployment = identity_or_passing(settings.state_folder).id
        storage = storage_of(settings, learn=secrets.learn)
        if storage is None:
            raise ConfigError(
                "no storage: give [storage] endpoint_url, or start everything with: headpond up",
                where=str(settings.file),
            )
        address = redis_of(settings, learn=secrets.learn)
        self._blobs = S3Blobs(storage)
        self._server = Server(address)
        self._leave = threading.Event()
        self._refused: HeadpondError | None = None
        """Why storage will not be used at all."""
        self._aof = AofSync(settings.state_folder / EMBEDDED_VALKEY_FOLDER) if settings.redis.url is None else None
        self._writer = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"
        kv = kv_folder(settings.state_folder)
        purged = PurgedPrefixes(kv, self._blobs)
        self._persistence = Persistence(
            address, self._blobs, writer=self._writer, model_server=self._server,
            history_s=settings.storage.history_s, spools=_spools_of(settings), sync=_sync_of(settings),
            forget=purged.forget, follow=purged.follow,
        )  # fmt: skip
        self._uploader = PrefixUploader(PrefixUploads(self._blobs, kv, writer=self._writer))

    def run(self) -> int:
        """Work until SIGTERM or SIGINT. Returns the exit code."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self._leave.set())
        if self._aof is not None:
            self._aof.start()
        if not self._await_server():
            return 0
        bucket = threading.Thread(target=self._make_bucket, name="bucket", daemon=True)
        bucket.start()
        bucket.join(BUCKET_WAIT_S)
        broker = self._persistence.broker
        pool = dramatiq.Worker(broker, queues={PERSISTENCE_QUEUE}, worker_threads=2)
        pool.queue_prefetch = 2
        pool.start()
        broker.emit_after("process_boot")
        follower = AliasFollower(self._server, self._blobs, writer=self._writer)
        follower.start()
        self._persistence.snapshots.start()
        self._uploader.start()
        helpers = (follower, self._persistence.snapshots, self._uploader)
        logger.info("persister_ready")
        next_tick = time.monotonic()
        while not self._leave.is_set():
            if dead := [helper.name for helper in helpers if not helper.is_alive()]:
                raise RuntimeError(f"threads have died: {', '.join(dead)}; their tracebacks are above")
            try:
                self._persistence.tick()
            except HeadpondError as error:
                logger.warning("tick_failed error=%s", error)
            next_tick = max(next_tick + INTERVAL_S, time.monotonic())
            self._leave.wait(next_tick - time.monotonic())
        if self._refused is not None:
            raise self._refused
        follower.stop()
        self._uploader.stop()
        pool.stop(timeout=10_000)
        self._last_commit()
        broker.close()
        return 0

    def _make_bucket(self) -> None:
        """Beside all else: while storage is away the queues need their ticks, and journals may have to go to disk."""
        while not self._leave.is_set():
            try:
                self._blobs.ensure_bucket()
            except ServiceUnavailable as error:
                logger.warning("storage_awaited error=%s", error)
                self._leave.wait(INTERVAL_S)
            except HeadpondError as error:
                self._refused = error
                self._leave.set()
            else:
                return

    def _await_server(self) -> bool:
        """Redis answers. False if told to leave first."""
        while not self._leave.is_set():
            try:
                queue = self._server.queue(PERSISTENCE_QUEUE)
                row = WorkerRow(
                    boot=self._persistence.broker.boot, model=PERSISTENCE_QUEUE, version="", host=socket.gethostname(),
                    pid=os.getpid(), instance="persister", slots=2, busy=0, state=WorkerState.READY, last_error="",
                    started_ms=int(time.time() * 1000), deployment=self._deployment,
                )  # fmt: skip
                queue.register(row, QueuePolicy(lease_s=LEASE_S, retention_s=RETENTION_S))
            except (ServiceUnavailable, QueueError) as error:
                # A server that was killed and is not quite back may refuse a script as well.
                logger.warning("server_awaited error=%s", error)
                self._leave.wait(INTERVAL_S)
                continue
            return True
        return False

    def _last_commit(self) -> None:
        try:
            for model in self._persistence.models():
                self._persistence.persist(model)
        except HeadpondError as error:
            # What is left stays in the journal, for the next persister.
            logger.warning("last_commit_failed error=%s", error)


def _sync_of(settings: Settings) -> StorageSync | None:
    """What brings commits to the disk; None where the storage is a server of the operator's own."""
    if settings.storage.endpoint_url is not None:
        return None
    return StorageSync(settings.state_folder / EMBEDDED_SEAWEED_FOLDER / EMBEDDED_SEAWEED_DATA)


def _spools_of(settings: Settings) -> SpoolPolicy:
    storage = settings.storage
    return SpoolPolicy(
        settings.state_folder / SPOOL_FOLDER, storage.spool_after_entries, int(storage.spool_max_gb * GB),
        socket.gethostname(),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(prog="headpond-persister", description="Commit the journals to S3 storage.")
    parser.add_argument("--config", type=Path, required=True, help="headpond.toml")
    options = parser.parse_args(argv)
    secrets = Secrets()
    start_logging(secrets)
    for noisy in ("dramatiq", "botocore", "boto3", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        # It commits whatever models the server has: no table of one concerns it.
        settings = settings_of_process(options.config, os.environ, needed=())
        code = Persister(settings, secrets=secrets).run()
    except HeadpondError as error:
        logger.error("persister_failed error=%s", error)
        code = EX_CONFIG if isinstance(error, ConfigError) else 1
    sys.exit(code)


if __name__ == "__main__":
    main()
