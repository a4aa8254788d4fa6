"""What a deployment remembers in `.headpond/`: who it is, what it applied and stopped, which secrets it was given."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headpond.errors import ConfigError, DeploymentError
from headpond.models import Holder, ModelRow
from headpond.settings import Settings, load_settings
from headpond.workers import WorkerState
from headpond_workers.naming.identity import (
    IDENTITY_FILE,
    Identity,
    identity_of,
    identity_or_passing,
    named_identity,
)
from headpond_workers.supervision.applied import APPLIED_FILE, Applied, read_applied, write_applied
from headpond_workers.supervision.changes import changes_between
from headpond_workers.supervision.model_list import ModelState, list_models
from headpond_workers.supervision.scaling import worker_counts
from headpond_workers.supervision.shell_secrets import SECRETS_FILE, note_shell_secrets, stale_shell_secrets
from headpond_workers.supervision.status import DeploymentStatus, WorkerStatus
from headpond_workers.supervision.stopped import STOPPED_FILE, read_stopped, write_stopped

CONFIG = """
[redis]
url = "redis://localhost:6379/0"
password = {env = "REDIS_SECRET"}
[storage]
endpoint_url = "http://localhost:1"
access_key = {env = "S3_SECRET"}
secret_key = {file = "s3-key"}
[models.chat]
engine = "scripted"
slots = 2
workers = 2
[models.code]
engine = "llamacpp"
path = "code.gguf"
"""


def settings_in(folder: Path, text: str = CONFIG) -> Settings:
    (folder / "headpond.toml").write_text(text)
    (folder / ".headpond").mkdir(mode=0o700, exist_ok=True)
    return load_settings(folder / "headpond.toml")


class TestIdentity:
    def test_it_is_made_once_and_private(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        first = identity_of(state)
        assert identity_of(state) == first
        assert len(first.id) == 16
        assert first.key.hex() not in repr(first)
        assert stat.S_IMODE((state / IDENTITY_FILE).stat().st_mode) == 0o600
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert [path.name for path in state.iterdir()] == [IDENTITY_FILE]
        assert identity_of(tmp_path / "other").id != first.id

    def test_all_who_ask_first_at_once_get_one_answer(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(identity_of, [tmp_path / "state"] * 64))
        assert len({identity.id for identity in found}) == 1

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            '{"schema": "headpond/deployment", "v": 2}',
            '{"schema": "headpond/deployment", "v": 1, "id": "../x", "key": "00"}',
        ],
    )
    def test_a_damaged_one_is_told_and_not_replaced(self, tmp_path: Path, text: str) -> None:
        (tmp_path / IDENTITY_FILE).write_text(text)
        with pytest.raises(DeploymentError, match="Remove it while the deployment is down"):
            identity_of(tmp_path)
        assert (tmp_path / IDENTITY_FILE).read_text() == text

    def test_where_nothing_can_be_kept_it_lasts_for_the_process(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("no folder")
        assert len(identity_or_passing(tmp_path / "file" / "state").id) == 16

    def test_one_may_be_chosen(self) -> None:
        assert named_identity("chat.prod-1").id == "chat.prod-1"
        for name in ("", "a b", "-x", "x" * 64, "ä"):
            with pytest.raises(ConfigError, match="HEADPOND_DEPLOYMENT"):
                named_identity(name)


class TestApplied:
    def test_it_comes_back_and_holds_references_alone(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        assert read_applied(settings.state_folder) == Applied()
        write_applied(settings.state_folder, Applied.of(settings))
        assert read_applied(settings.state_folder) == Applied.of(settings)
        path = settings.state_folder / APPLIED_FILE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert '"env": "REDIS_SECRET"' in path.read_text()
        assert not changes_between(read_applied(settings.state_folder), settings)

    def test_changes_name_tables_keys_and_what_needs_a_restart(self, tmp_path: Path) -> None:
        before = Applied.of(settings_in(tmp_path))
        changed = settings_in(
            tmp_path,
            CONFIG.replace("slots = 2", "slots = 3\nmax_queued = 9\ntenant_weights = {a = 2.0}")
            .replace('{env = "S3_SECRET"}', '{env = "OTHER"}')
            .replace("models.code", "models.late"),
        )
        changes = changes_between(before, changed)
        assert changes.lines({"late": 1}) == [
            "+ models.late: 1 worker",
            "- models.code",
            '~ storage.access_key.env: "S3_SECRET" -> "OTHER"  (restart)',
            "~ models.chat.max_queued: 0 -> 9",
            "~ models.chat.slots: 2 -> 3  (restart)",
            "~ models.chat.tenant_weights.a: none -> 2.0",
        ]
        assert changes.changed_live == {"chat"}
        document = changes.document()
        assert document["added"] == ["late"]
        assert {"table": "models.chat", "key": "slots", "old": 2, "new": 3, "restart": True} in document["changed"]

    def test_some_models_alone_are_noted(self, tmp_path: Path) -> None:
        before = Applied.of(settings_in(tmp_path))
        now = settings_in(tmp_path, CONFIG.replace("slots = 2", "slots = 3").replace("code.gguf", "new.gguf"))
        noted = before.with_models_of(Applied.of(now), ["chat"])
        assert [change.table for change in changes_between(noted, now).changed] == ["models.code"]


class TestStopped:
    def test_a_stopped_model_has_no_workers_whatever_the_configuration_says(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        assert worker_counts(settings) == {"chat": 2, "code": 1}
        write_stopped(settings.state_folder, {"chat"})
        assert worker_counts(settings) == {"chat": 0, "code": 1}
        assert read_stopped(settings.state_folder) == {"chat"}


class TestShellSecrets:
    IDENTITY = Identity("0" * 16, b"k" * 32)

    def test_values_that_are_those_of_the_start_are_told_from_others(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        environment = {"REDIS_SECRET": "one", "S3_SECRET": "two", "UNRELATED": "three"}
        note_shell_secrets(settings, self.IDENTITY, environment)
        assert stale_shell_secrets(settings, self.IDENTITY, environment | {"UNRELATED": "changed"}) == []
        (line,) = stale_shell_secrets(settings, self.IDENTITY, environment | {"S3_SECRET": "rotated"})
        assert line.startswith("The variable S3_SECRET had another value when supervisord was started")
        (line,) = stale_shell_secrets(settings, self.IDENTITY, {"REDIS_SECRET": "one"})
        assert "S3_SECRET" in line
        text = (settings.state_folder / SECRETS_FILE).read_text()
        assert stat.S_IMODE((settings.state_folder / SECRETS_FILE).stat().st_mode) == 0o600
        assert not any(value in text for value in ("one", "two", "UNRELATED"))
        # Another key gives other digests: they cannot be compared between deployments.
        other = settings_in(tmp_path)
        note_shell_secrets(other, replace(self.IDENTITY, key=b"x" * 32), environment)
        assert (settings.state_folder / SECRETS_FILE).read_text() != text

    def test_a_variable_that_is_new_in_the_configuration_is_told(self, tmp_path: Path) -> None:
        note_shell_secrets(settings_in(tmp_path), self.IDENTITY, {})
        settings = settings_in(tmp_path, CONFIG.replace("S3_SECRET", "S3_NEW"))
        (line,) = stale_shell_secrets(settings, self.IDENTITY, {"S3_NEW": "v"})
        assert line.startswith("The variable S3_NEW was not referred to when supervisord was started")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (APPLIED_FILE, read_applied),
        (STOPPED_FILE, read_stopped),
    ],
)
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "x", "v": 1}'])
def test_a_damaged_file_is_named_with_what_to_do(
    tmp_path: Path, name: str, read: Callable[[Path], Any], text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DeploymentError, match=rf"{name} cannot be used .*Remove it"):
        read(tmp_path)


def worker(model: str, state: WorkerState, **fields: Any) -> WorkerStatus:
    return WorkerStatus(
        instance=f"{model}-0", model=model, version="local-1", pid=0, host="here", slots=1, busy=0, state=state,
        last_error="", **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("states", "wanted", "stopped", "expected"),
    [
        ([WorkerState.READY], 1, False, ModelState.READY),
        ([WorkerState.READY], 2, False, ModelState.PARTLY),
        ([WorkerState.READY, WorkerState.FAILED], 2, False, ModelState.PARTLY),
        ([WorkerState.FAILED], 1, False, ModelState.FAILED),
        ([WorkerState.LOADING], 1, False, ModelState.STARTING),
        ([], 1, False, ModelState.STARTING),
        ([], 1, True, ModelState.STOPPED),
        ([WorkerState.READY], None, False, ModelState.READY),
        ([], None, False, ModelState.UNSERVED),
        ([], 0, False, ModelState.UNSERVED),
    ],
)
def test_the_state_of_a_model(
    states: list[WorkerState], wanted: int | None, *, stopped: bool, expected: ModelState
) -> None:
    holder = Holder("a" * 16, socket.gethostname(), "/srv")
    row = ModelRow("scripted", 0, True, 64, '{"context_tokens":64,"engine":"scripted"}', (holder,))
    workers = tuple(worker("chat", state, device="cuda:0", memory_bytes=5) for state in states)
    (line,) = list_models(
        {"chat": row},
        DeploymentStatus((), workers),
        wanted={} if wanted is None else {"chat": wanted},
        engines={},
        stopped=frozenset({"chat"} if stopped else ()),
        host="here",
    )
    assert (line.state, line.wanted, line.spec) == (expected, wanted, "scripted 64 tokens")
    assert line.device_bytes == 5 * len(states)
    assert line.document()["held_by"] == [
        {"deployment": "a" * 16, "host": socket.gethostname(), "folder": "/srv", "since_ms": 0}
    ]
