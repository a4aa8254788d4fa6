"""`headpond up` and its relatives on real processes: Valkey, SeaweedFS, supervisord, workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
import typer
from typer.testing import CliRunner

from headpond.cli.exits import BAD_INPUT, exit_code
from headpond.errors import ConfigError, DeploymentError, InvalidRequest
from headpond.settings import load_settings
from headpond.workers import WorkerState
from headpond_workers.cli.deployment import register
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.run_file import read_run_file
from headpond_workers.supervision.supervisor import SupervisorGone
from headpond_workers.supervision.supervisord_process import process_runs

CONFIG = """\
[defaults]
lease_s = 2
drain_timeout_s = 2
[models.chat]
engine = "scripted"
workers = 2
[models.code]
engine = "scripted"
"""
CLI = "import typer; from headpond_workers.cli.deployment import register\napp = typer.Typer(); register(app); app()"


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process whose command line or working folder lies in `folder`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            words = " ".join(process.cmdline())
            if process.pid != os.getpid() and (str(folder) in words or process.cwd().startswith(str(folder))):
                found.append(process)
    return [process for process in found if process_runs(process.pid)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a configuration; what was started on it ends with the test."""
    (tmp_path / "headpond.toml").write_text(CONFIG)
    try:
        yield tmp_path
    finally:
        with contextlib.suppress(DeploymentError):
            deployment_of(tmp_path).down()
        for process in processes_of(tmp_path):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()


def deployment_of(folder: Path, lines: list[str] | None = None) -> Deployment:
    progress = lines.append if lines is not None else lambda line: None
    return Deployment(load_settings(folder / "headpond.toml"), progress=progress)


def worker_pids(deployment: Deployment) -> dict[str, int]:
    return {worker.instance: worker.pid for worker in deployment.status().workers}


@pytest.mark.slow
def test_a_deployment_comes_up_scales_and_leaves_nothing_running(folder: Path) -> None:
    deployment = deployment_of(folder)
    deployment.up()
    status = deployment.wait_ready(timeout_s=60)
    assert {worker.instance: worker.state for worker in status.workers} == dict.fromkeys(
        ["chat-0", "chat-1", "code-0"], WorkerState.READY
    )
    before = worker_pids(deployment)

    deployment.scale({"chat": 4})
    deployment.wait_ready(timeout_s=60)
    four = worker_pids(deployment)
    assert sorted(four) == ["chat-0", "chat-1", "chat-2", "chat-3", "code-0"]
    assert {name: four[name] for name in before} == before

    deployment.scale({"chat": 1})
    assert worker_pids(deployment) == {name: before[name] for name in ("chat-0", "code-0")}

    assert len(processes_of(folder)) >= 5
    assert deployment.down() is True
    assert processes_of(folder) == []
    assert read_run_file(deployment.folder) is None
    assert deployment.down() is False
    with pytest.raises(SupervisorGone, match="headpond up"):
        deployment.status()


@pytest.mark.slow
def test_a_second_up_says_so_and_keeps_what_runs(folder: Path) -> None:
    deployment_of(folder).up()
    deployment_of(folder).wait_ready(timeout_s=60)
    deployment_of(folder).scale({"code": 2})
    before = deployment_of(folder).wait_ready(timeout_s=60)
    lines: list[str] = []
    again = deployment_of(folder, lines)
    again.up()
    after = again.wait_ready(timeout_s=60)
    assert any(re.fullmatch(r"supervisord runs already \(pid \d+\)", line) for line in lines)
    assert [(w.instance, w.pid) for w in after.workers] == [(w.instance, w.pid) for w in before.workers]
    # A scale outlives the deployment that it was said to.
    again.down()
    again.up()
    assert "code-1" in {worker.instance for worker in again.wait_ready(timeout_s=60).workers}


@pytest.mark.slow
def test_a_changed_configuration_touches_its_own_model_alone(folder: Path) -> None:
    deployment_of(folder).up()
    before = deployment_of(folder).wait_ready(timeout_s=60)
    (folder / "headpond.toml").write_text(
        CONFIG.replace("[models.code]", "[models.code]\ntokens_per_s = 7").replace("workers = 2", "workers = 1")
    )
    deployment = deployment_of(folder)
    deployment.up()
    deployment.wait_ready(timeout_s=60)
    pids, after = {worker.instance: worker.pid for worker in before.workers}, worker_pids(deployment)
    assert sorted(after) == ["chat-0", "code-0"]
    assert after["chat-0"] == pids["chat-0"]
    assert after["code-0"] != pids["code-0"]


@pytest.mark.slow
def test_one_model_that_cannot_load_does_not_keep_others_from_serving(folder: Path) -> None:
    (folder / "damaged.gguf").write_bytes(b"no weights")
    (folder / "headpond.toml").write_text(
        f"{CONFIG}\n[models.broken]\nengine = 'llamacpp'\npath = 'damaged.gguf'\n"
        "[models.crashing]\nengine = 'scripted'\ncrash_at = 'load'\n"
    )
    deployment = deployment_of(folder)
    deployment.up()
    found = {worker.instance: worker for worker in deployment.wait_ready(timeout_s=90).workers}
    assert {name for name, worker in found.items() if worker.state is WorkerState.READY} == {
        "chat-0",
        "chat-1",
        "code-0",
    }
    assert "damaged.gguf" in found["broken-0"].last_error
    assert "terminated by SIGKILL" in found["crashing-0"].last_error


@pytest.mark.slow
def test_a_killed_supervisor_takes_all_with_it_and_up_starts_anew(folder: Path) -> None:
    deployment = deployment_of(folder)
    deployment.up()
    deployment.wait_ready(timeout_s=60)
    run = read_run_file(deployment.folder)
    assert run is not None
    client = redis.Redis.from_url(run.redis_url)
    client.set("acknowledged", "yes")
    os.kill(run.supervisor_pid, signal.SIGKILL)
    with pytest.raises(SupervisorGone):
        deployment.status()
    deployment.up()
    assert {worker.state for worker in deployment.wait_ready(timeout_s=60).workers} == {WorkerState.READY}
    assert client.get("acknowledged") == b"yes"
    assert read_run_file(deployment.folder) != run


@pytest.mark.slow
def test_no_secret_of_the_shell_reaches_a_worker_and_none_is_in_a_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-shell")
    deployment = deployment_of(folder)
    deployment.up()
    deployment.wait_ready(timeout_s=60)
    run = read_run_file(deployment.folder)
    assert run is not None
    assert run.storage is not None
    secrets = [run.redis_url.split(":")[2].split("@")[0], run.storage.secret_key, "of-the-shell"]
    running = processes_of(folder)
    assert len(running) >= 5
    for process in running:
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)
        if process.pid != run.supervisor_pid:
            assert "AWS_SECRET_ACCESS_KEY" not in process.environ()
    generated = [deployment.folder / "supervisord.conf", *(deployment.folder / "conf.d").iterdir()]
    assert not any(secret in path.read_text() for path in generated for secret in secrets)


@pytest.mark.slow
def test_a_taken_port_is_named_and_nothing_is_left_running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headpond_workers.supervision.servers.PORT_TIMEOUT_S", 0.2)
    deployment = deployment_of(folder)
    deployment.up()
    deployment.down()
    port = json.loads((deployment.folder / "valkey" / "access.json").read_text())["port"]
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(DeploymentError, match=rf"Port {port} .* is taken[\s\S]*access\.json"),
    ):
        deployment.up()
    assert processes_of(folder) == []


def test_a_configuration_without_a_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "headpond.toml").write_text("[redis]\n")
    with pytest.raises(ConfigError, match="names no model"):
        deployment_of(tmp_path).up()
    assert not (tmp_path / ".headpond").exists()


def test_scaling_what_does_not_run_says_how_to_start_it(folder: Path) -> None:
    with pytest.raises(DeploymentError, match="headpond up"):
        deployment_of(folder).scale({"chat": 2})


@pytest.mark.slow
def test_the_commands_work_together(folder: Path) -> None:
    app = typer.Typer()
    register(app)

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--config", str(folder / "headpond.toml")])
        assert result.exit_code == 0, result.output
        return result.stdout

    run("up", "--detach")
    document = json.loads(run("status", "--json"))
    assert [queue["model"] for queue in document["queues"]] == ["chat", "code"]
    assert set(document["queues"][0]) == {
        "model", "ready", "interactive", "normal", "batch", "suspects", "delayed", "due", "running", "lapsed", "dead",
        "storage", "waiting", "alias",
    }  # fmt: skip
    assert set(document["workers"][0]) == {
        "instance", "model", "version", "pid", "host", "slots", "busy", "tokens_per_s", "state", "last_error",
    }  # fmt: skip
    assert [worker["state"] for worker in document["workers"]] == ["ready"] * 3
    assert [worker["instance"] for worker in document["workers"]] == ["chat-0", "chat-1", "code-0"]
    run("scale", "chat=1", "code=0")
    table = run("status")
    assert "chat-0" in table
    assert "code-0" not in table
    assert "ready model=chat" in run("logs", "chat")
    run("down")
    assert processes_of(folder) == []


@pytest.mark.slow
def test_sigterm_to_a_foreground_up_takes_everything_down(folder: Path) -> None:
    command = [sys.executable, "-c", CLI, "up", "--config", str(folder / "headpond.toml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}) as up:
        try:
            assert up.stderr is not None
            seen = iter(up.stderr.readline, "")
            assert any("3 of 3 workers ready" in line for line in seen)
            up.send_signal(signal.SIGTERM)
            assert any("supervisord stopped" in line for line in seen)
            assert up.wait(60) == 0
        finally:
            up.kill()
    wait_until(lambda: processes_of(folder) == [])


@pytest.mark.parametrize("word", ["chat", "chat=", "chat=two", "=2", "chat=-1", "chat=1=2", "chat=65", "chat=1 chat=2"])
def test_a_count_that_is_none_is_refused_with_an_example(folder: Path, word: str) -> None:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, ["scale", "--config", str(folder / "headpond.toml"), "--", *word.split()])
    assert isinstance(result.exception, InvalidRequest)
    assert exit_code(result.exception) == BAD_INPUT
    assert "headpond scale chat=3" in str(result.exception)
