"""A commit on the embedded SeaweedFS counts once its file system is synced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conftest import Deployment, eventually
from headpond import Client
from headpond.errors import DurabilityUnknown, StorageUnavailable
from headpond.models import ModelRow
from headpond.settings import EMBEDDED_SEAWEED_DATA, EMBEDDED_SEAWEED_FOLDER, RUN_FILE, STATE_FOLDER
from headpond_workers.persistence import storage_sync
from headpond_workers.persistence.storage_sync import StorageSync
from headpond_workers.supervision.embedded_seaweed import running_seaweed
from stored_deployment import start_persister


def test_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = storage_sync._sync_file_system

    def noted(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(storage_sync, "_sync_file_system", noted)
    (tmp_path / "object").write_bytes(b"x" * 100_000)
    StorageSync(tmp_path)()
    assert synced == [str(tmp_path)]


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match=r"gone .*cannot be synced: No such file"):
        StorageSync(tmp_path / "gone")()


@pytest.mark.slow
def test_nothing_counts_as_durable_before_its_sync(deployment: Deployment, client: Client, tmp_path: Path) -> None:
    """The deployment is told of an embedded SeaweedFS whose folder is away: all puts succeed, and no sync does."""
    deployment.configure('[models.chat]\nengine = "scripted"\n')
    state = deployment.folder / STATE_FOLDER
    state.mkdir(mode=0o700)
    queue_server = deployment.server()
    queue_server.configure_model("chat", ModelRow("scripted", 0, storage=True, context_tokens=2048))
    queue = queue_server.queue("chat", storage=True)
    with running_seaweed(tmp_path / "storage") as seaweed:
        names = ("url", "bucket", "region", "access_key", "secret_key")
        storage = {name.replace("url", "endpoint_url", 1): getattr(seaweed, name) for name in names}
        (state / RUN_FILE).write_text(json.dumps({"storage": storage}))
        persister = start_persister(deployment)
        with pytest.raises(DurabilityUnknown):
            client.submit("chat", "hello", id="chat/one", durability="storage", durability_timeout=4)
        eventually(lambda: "cannot be synced" in persister.log.read_text(), what="the persister's word")
        assert queue.journal_length() == 1
        (state / EMBEDDED_SEAWEED_FOLDER / EMBEDDED_SEAWEED_DATA).mkdir(parents=True)
        client.submit("chat", "hello", id="chat/one", durability="storage")
        eventually(lambda: queue.journal_length() == 0, what="the trim")
        deployment.close()
