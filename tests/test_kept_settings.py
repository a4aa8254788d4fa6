"""What a deployment keeps of its settings comes back as it was, and is what its processes are started with."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import eventually
from deployment_town import Place, Town, town_of
from headpond.connections import find_redis
from headpond.errors import ConfigError
from headpond.kept_settings import (
    APPLIED_FILE,
    RUNNING_FOLDER,
    applied_settings,
    find_applied,
    running_document,
    running_settings,
)
from headpond.settings import STATE_FOLDER, Settings, check_settings
from headpond_workers.supervised import SUPERVISED, settings_of_process
from headpond_workers.supervision.applied import Applied, write_applied
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from headpond_workers.supervision.embedded_valkey import ValkeyProcess

EVERYTHING = {
    "redis": {"url": "redis://10.0.0.1:6379/0", "password": {"env": "REDIS_SECRET"}},
    "storage": {"endpoint_url": "https://s3.example", "access_key": {"env": "A"}, "secret_key": {"file": "/run/s"}},
    "models": {
        "chat": {
            "engine": "scripted", "slots": 3, "tenant_weights": {"acme": 2.5},
            "tenant_retention": {"a": {"retention_s": 60}},
        },
        "small": {"engine": "llamacpp", "path": "small.gguf", "adapters": {"formal": {"path": "lora.gguf"}}},
        "kept": {"engine": "llamacpp", "source": "s3:kept@prod", "rollover": "in-place", "kv": "storage"},
        "paged": {"engine": "exllamav2", "path": "weights", "draft": {"path": "draft"}, "context_tokens": 4096},
        "other": {"engine": "exllamav3", "path": "weights3"},
        "far": {
            "engine": "openai", "base_url": "https://api.example/v1", "api_key": {"env": "KEY_A"},
            "upstream_model": "m", "headers": {"X-Team": {"env": "TEAM"}},
        },
    },
}  # fmt: skip


def settings_in(folder: Path, tables: dict[str, object] = EVERYTHING) -> Settings:
    return check_settings(json.loads(json.dumps(tables)), file=folder / "headpond.toml")


def keep(settings: Settings, digest: str, models: list[str]) -> Path:
    folder = settings.state_folder / RUNNING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{digest}.json").write_text(running_document(settings, models))
    return folder / f"{digest}.json"


def test_tables_of_every_engine_come_back_equal(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert settings.file is not None
    keep(settings, "0a", list(settings.models))
    # Origins are told to people, and not kept.
    assert running_settings(settings.file, "0a") == settings.model_copy(update={"origins": {}})
    write_applied(settings.state_folder, Applied.of(settings))
    assert applied_settings(settings.file) == settings.model_copy(update={"origins": {}})
    assert find_applied(tmp_path) == settings.file


def test_a_program_is_given_its_own_models_and_both_servers(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert settings.file is not None
    keep(settings, "0a", ["far"])
    found = running_settings(settings.file, "0a")
    assert found is not None
    assert found.models == {"far": settings.models["far"]}
    assert (found.redis, found.storage, found.folder) == (settings.redis, settings.storage, tmp_path)
    assert running_settings(settings.file, "0b") is None


def test_a_supervised_process_goes_by_what_is_kept_and_any_other_by_the_file(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    file = tmp_path / "headpond.toml"
    keep(settings, "0a", ["chat"])
    file.write_text('[models.chat]\nengine = "scripted"\nslots = 5\n')
    assert settings_of_process(file, {SUPERVISED: "0a"}, needed=["chat"]).model("chat").slots == 3
    assert settings_of_process(file, {}, needed=["chat"]).model("chat").slots == 5
    # As after an update of a deployment that an older release brought up.
    assert settings_of_process(file, {SUPERVISED: "0b"}, needed=["chat"]).model("chat").slots == 5


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "{}", '{"schema": "headpond/running", "v": 2, "models": {}}', "[" * 100_000,
        '{"schema": "headpond/running", "v": 1, "redis": {}, "storage": {}, "models": []}',
        '{"schema": "headpond/running", "v": 1, "redis": {}, "storage": {}, "models": {"chat": 3}}',
        '{"schema": "headpond/running", "v": 1, "redis": {}, "storage": {}, "models": {"chat": {"engine": "x"}}}',
        '{"schema": "headpond/running", "v": 1, "redis": {"url": 3}, "storage": {}, "models": {}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    settings = settings_in(tmp_path)
    assert settings.file is not None
    path = keep(settings, "0a", ["chat"])
    path.write_text(text)
    with pytest.raises(ConfigError, match="headpond up") as refused:
        running_settings(settings.file, "0a")
    assert refused.value.where.startswith(str(path))


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    settings = settings_in(tmp_path_factory.getbasetemp())
    assert settings.file is not None
    keep(settings, "0a", ["chat"]).write_bytes(raw)
    with pytest.raises(ConfigError):
        running_settings(settings.file, "0a")


def test_amid_an_edit_a_client_finds_the_server_that_was_applied(tmp_path: Path) -> None:
    tables = {"redis": {"url": "redis://10.0.0.1:6379/0"}, "models": {"chat": {"engine": "scripted"}}}
    settings = settings_in(tmp_path, tables)
    settings.state_folder.mkdir()
    (tmp_path / "headpond.toml").write_text("[models.chat\n")
    with pytest.raises(ConfigError, match=r"headpond\.toml"):
        find_redis(start=tmp_path)
    write_applied(settings.state_folder, Applied.of(settings))
    assert find_redis(start=tmp_path).url == "redis://10.0.0.1:6379/0"
    # Where the server was embedded, and nothing runs any more, the mistake is what to tell.
    write_applied(settings.state_folder, Applied.of(settings_in(tmp_path, {"models": tables["models"]})))
    with pytest.raises(ConfigError, match=r"headpond\.toml"):
        find_redis(start=tmp_path)


# ---- on real processes

COMMON = "[defaults]\nlease_s = 2\ndrain_timeout_s = 5\n"
MODELS = '[models.chat]\nengine = "scripted"\nanswer_tokens = 23\nworkers = 2\n[models.code]\nengine = "scripted"\n'


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def town(valkey: ValkeyProcess, seaweed: SeaweedProcess, tmp_path: Path) -> Iterator[Town]:
    with town_of(valkey, seaweed, tmp_path) as town:
        yield town


def kill_and_await(place: Place, instance: str, pids: dict[str, int]) -> None:
    """SIGKILL, and wait until supervisord's next process of that name is ready."""
    os.kill(pids[instance], signal.SIGKILL)
    model = instance.rpartition("-")[0]

    def came() -> bool:
        rows = {row.instance: row.pid for row in place.town.ready(model)}
        return rows.get(instance) not in (None, pids[instance])

    eventually(came, what=f"another {instance}")


def tokens(town: Town) -> set[int]:
    """Of answers to eight questions, over all workers."""
    with town.client() as client:
        jobs = [client.submit("chat", f"question {n}", max_tokens=100) for n in range(8)]
        return {len(job.result(timeout=60).token_ids) for job in jobs}


@pytest.mark.slow
def test_a_worker_that_crashes_amid_an_edit_comes_back_as_it_was(town: Town) -> None:
    place = town.place("only", COMMON + MODELS)
    place.up()
    assert tokens(town) == {23}
    place.configure(COMMON + MODELS.replace("23", "24"))
    kill_and_await(place, "chat-0", place.pids())
    assert tokens(town) == {23}
    place.config.write_text("[models.chat\n")
    kill_and_await(place, "chat-1", {row.instance: row.pid for row in town.ready("chat")})
    assert tokens(town) == {23}

    place.configure(COMMON + MODELS.replace("23", "24"))
    assert place.command("reload").returncode == 0
    assert tokens(town) == {24}
    kill_and_await(place, "chat-0", place.pids())
    assert tokens(town) == {24}
    # One file for chat, one for code, one for the persister.
    assert len(list((place.folder / STATE_FOLDER / RUNNING_FOLDER).iterdir())) == 3


@pytest.mark.slow
def test_a_worker_that_a_failed_reload_did_not_come_to_keeps_its_settings_over_a_crash(town: Town) -> None:
    place = town.place("only", COMMON + MODELS)
    place.up()
    (place.folder / "chat.gguf").write_bytes(b"GGUF, and nothing behind it")
    table = 'engine = "scripted"\nanswer_tokens = 23\n'
    place.configure(COMMON + MODELS.replace(table, 'engine = "llamacpp"\npath = "chat.gguf"\n'))
    assert place.command("reload").returncode != 0
    (alive,) = town.ready("chat")
    assert tokens(town) == {23}
    kill_and_await(place, alive.instance, {alive.instance: alive.pid})
    assert tokens(town) == {23}


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["[models.chat\n", None], ids=["wrong", "gone"])
def test_what_runs_can_be_seen_and_stopped_whatever_became_of_the_file(town: Town, broken: str | None) -> None:
    place = town.place("only", COMMON + MODELS)
    place.up()
    persister = place.deployment.running().processes()["persister"].pid
    if broken is None:
        place.config.unlink()
    else:
        place.config.write_text(broken)
    os.kill(persister, signal.SIGKILL)

    status = place.headpond("status", "--json")
    assert status.returncode == 0, status.stderr
    assert {worker["model"] for worker in json.loads(status.stdout)["workers"]} == {"chat", "code"}
    assert "Going by what was applied last." in status.stderr
    logs = place.headpond("logs", "chat")
    assert " ready model=chat " in logs.stdout, logs.stderr
    listed = place.headpond("models", "list", "--json")
    assert {model["name"] for model in json.loads(listed.stdout)["models"]} == {"chat", "code"}
    stopped = place.headpond("models", "stop", "code")
    assert stopped.returncode == 0, stopped.stderr
    eventually(lambda: town.ready("code") == [], what="code stopped")
    assert tokens(town) == {23}
    for command in ("reload", "up"):
        refused = place.headpond(command)
        assert refused.returncode == 2
        assert "Going by" not in refused.stderr
    down = place.headpond("down")
    assert down.returncode == 0, down.stderr
    assert place.processes() == []
    assert "Traceback" not in (place.folder / STATE_FOLDER / "logs" / "persister.log").read_text()
    assert (place.folder / STATE_FOLDER / APPLIED_FILE).exists()
