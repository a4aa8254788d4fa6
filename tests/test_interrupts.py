"""`headpond up`, `down` and their relatives, interrupted or killed at each line that they say."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from headpond.cli.app import build_app
from headpond.cli.exits import INTERRUPTED
from headpond.errors import DeploymentError
from headpond.settings import RUN_FILE, load_settings
from headpond.up_file import UP_FILE
from headpond_workers.supervision.applied import APPLIED_FILE, Applied, write_applied
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.stopped import read_stopped
from headpond_workers.supervision.supervisord_process import process_runs

HEADPOND = [sys.executable, "-c", "from headpond.cli import main; main()"]
CONFIG = "[defaults]\nlease_s = 2\ndrain_timeout_s = 2\n[models.s]\nengine = 'scripted'\n"
TIMEOUT_S = 60.0
NO_TRACE = ("Traceback", "Exception ignored", "KeyboardInterrupt")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and all that it said on stderr."""

    returncode: int
    said: str


@dataclass(frozen=True)
class Place:
    """A folder with a configuration."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / ".headpond"

    @property
    def deployment(self) -> Deployment:
        return Deployment(load_settings(self.folder / "headpond.toml"))

    def begin(self, *words: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*HEADPOND, *words], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def headpond(self, *words: str) -> Ended:
        """A command, to its end."""
        with self.begin(*words) as command:
            _, said = command.communicate(timeout=TIMEOUT_S)
        return Ended(command.returncode, said)

    def hit(
        self,
        line: str,
        signum: signal.Signals,
        *words: str,
        environment: Mapping[str, str] | None = None,
        may_lack: bool = False,
    ) -> Ended:
        """A command that gets a signal once it says `line`. may_lack: one that never does comes to its end."""
        with self.begin(*words, environment=environment) as command:
            try:
                assert command.stderr is not None
                said = ""
                for told in command.stderr:
                    said += told
                    if line in told:
                        break
                else:
                    assert may_lack, f"'{line}' was never said, but:\n{said}"
                    return Ended(command.wait(TIMEOUT_S), said)
                command.send_signal(signum)
                said += command.communicate(timeout=TIMEOUT_S)[1]
            finally:
                command.kill()
        return Ended(command.returncode, said)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = " ".join(process.cmdline())
                if process.pid != os.getpid() and (str(self.folder) in words or process.cwd() == str(self.state)):
                    found.append(process)
        return [process for process in found if process_runs(process.pid)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """One that was up before. What was started in it ends with the test."""
    (tmp_path / "headpond.toml").write_text(CONFIG)
    place = Place(tmp_path)
    place.state.mkdir(mode=0o700)
    write_applied(place.state, Applied.of(place.deployment.settings))
    try:
        yield place
    finally:
        with contextlib.suppress(DeploymentError):
            place.deployment.down()
        for process in place.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()


@pytest.mark.slow
def test_what_was_interrupted_at_any_line_is_gone_on_with(place: Place) -> None:
    for line, signum in (
        ("supervisord started", signal.SIGINT),
        ("valkey ready", signal.SIGKILL),
        ("seaweedfs ready", signal.SIGINT),
        ("persister started", signal.SIGKILL),
    ):
        ended = place.hit(line, signum, "up", "--detach", may_lack=line == "persister started")
        if line not in ended.said:
            # On a busy machine the command before had come further than the line that it was interrupted at.
            assert (ended.returncode, "1 worker ready" in ended.said) == (0, True), ended.said
            continue
        assert ended.returncode == (INTERRUPTED if signum is signal.SIGINT else -signal.SIGKILL), ended.said
        assert "stop it with: headpond down" in ended.said or signum is signal.SIGKILL
    ready = place.headpond("up", "--detach")
    assert (ready.returncode, "1 worker ready" in ready.said) == (0, True), ready.said

    for line in ("s-0 stopping", "valkey stopped"):
        assert place.hit(line, signal.SIGKILL, "down").returncode == -signal.SIGKILL
    again = place.headpond("up", "--detach")
    assert (again.returncode, "1 worker ready" in again.said) == (0, True), again.said

    for line, signum in (("s-0 stopping", signal.SIGINT), ("persister stopping", signal.SIGKILL)):
        place.hit(line, signum, "down")
    # The worker drains still, or has ended: it is started again.
    again = place.headpond("up", "--detach")
    assert (again.returncode, "1 worker ready" in again.said) == (0, True), again.said

    for line, signum in (
        ("s-0 stopping", signal.SIGKILL),
        ("persister stopping", signal.SIGINT),
        ("seaweedfs stopping", signal.SIGKILL),
    ):
        place.hit(line, signum, "down")
    ended = place.headpond("down")
    assert ended.returncode == 0, ended.said
    assert "stay held" not in ended.said
    assert place.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "signum"),
    [
        ("supervisord started", signal.SIGKILL),
        ("valkey ready", signal.SIGINT),
        ("seaweedfs ready", signal.SIGKILL),
        ("s-0 started", signal.SIGINT),
    ],
)
def test_down_stops_all_that_an_interrupted_up_has_started(place: Place, line: str, signum: signal.Signals) -> None:
    place.hit(line, signum, "up", "--detach")
    assert len(place.processes()) >= 2
    ended = place.headpond("down")
    assert ended.returncode == 0, ended.said
    assert "supervisord stopped" in ended.said
    assert place.processes() == []


@pytest.mark.slow
def test_down_stops_what_runs_whatever_became_of_the_files_that_speak_of_it(place: Place) -> None:
    # A socket that a later command's environment does not lead to.
    with tempfile.TemporaryDirectory() as session:
        place.hit("s-0 started", signal.SIGKILL, "up", "--detach", environment={"XDG_RUNTIME_DIR": session})
        for name in (RUN_FILE, UP_FILE, APPLIED_FILE):
            (place.state / name).write_text("{")
        ended = place.headpond("down")
        assert ended.returncode == 0, ended.said
        assert UP_FILE in ended.said
        assert place.processes() == []
        assert not (place.state / RUN_FILE).exists()


@pytest.mark.slow
def test_down_ends_a_supervisord_whose_socket_a_logout_or_a_clean_up_has_removed(place: Place) -> None:
    place.hit("valkey ready", signal.SIGKILL, "up", "--detach")
    supervisor = place.deployment.supervisor()
    assert supervisor is not None
    shutil.rmtree(supervisor.socket.parent)
    refused = place.headpond("up", "--detach")
    assert (refused.returncode, "its socket is gone" in refused.said) == (1, True), refused.said
    ended = place.headpond("down")
    assert (ended.returncode, "supervisord stopped" in ended.said) == (0, True), ended.said
    assert place.processes() == []


@pytest.mark.slow
def test_an_up_that_is_killed_while_supervisord_starts_is_stopped_by_down(place: Place) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    with place.begin("up", "--detach") as up:
        while not any("supervisor.supervisord" in process.cmdline() for process in place.processes()):
            assert time.monotonic() < deadline, "supervisord was never started"
        up.kill()
    ended = place.headpond("down")
    assert (ended.returncode, "supervisord stopped" in ended.said) == (0, True), ended.said
    assert place.processes() == []


@pytest.mark.slow
def test_until_the_servers_are_ready_other_commands_say_what_to_do_and_do_nothing(place: Place) -> None:
    place.hit("supervisord started", signal.SIGKILL, "up", "--detach")
    for words in (("status",), ("reload",), ("scale", "s=2"), ("models", "list"), ("models", "stop", "s"),
                  ("models", "restart", "s")):  # fmt: skip
        done = CliRunner().invoke(build_app(), [*words, "--config", str(place.folder / "headpond.toml")])
        assert isinstance(done.exception, DeploymentError), words
        assert "Go on with: headpond up. Or stop what was started: headpond down" in str(done.exception)
    assert read_stopped(place.state) == frozenset()
    assert not (place.state / "scale.json").exists()


@pytest.mark.slow
def test_a_model_is_stopped_while_redis_is_away_and_its_name_is_said_to_stay_held(place: Place) -> None:
    (place.folder / "headpond.toml").write_text(CONFIG + "workers = 0\n")
    place.deployment.up()
    supervisor = place.deployment.supervisor()
    assert supervisor is not None
    supervisor.stop(["valkey"], timeout_s=TIMEOUT_S, progress=lambda line: None)
    stopped = place.headpond("models", "stop", "s")
    assert stopped.returncode == 0, stopped.said
    assert "Stopped, but their names stay held" in stopped.said
    assert read_stopped(place.state) == {"s"}


@pytest.mark.slow
@pytest.mark.parametrize("line", ["supervisord started", "valkey ready", "seaweedfs ready", "s-0 started"])
def test_ctrl_c_ends_an_up_in_the_foreground_and_all_that_it_started(place: Place, line: str) -> None:
    ended = place.hit(line, signal.SIGINT, "up")
    assert "Stopping; workers may finish" in ended.said
    assert "supervisord stopped" in ended.said
    assert not any(word in ended.said for word in NO_TRACE), ended.said
    assert ended.returncode == 0
    assert place.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [("up",), ("up", "--detach")])
def test_an_up_that_fails_midway_says_that_what_it_started_goes_on(place: Place, words: tuple[str, ...]) -> None:
    (place.state / UP_FILE / "in the way").mkdir(parents=True)
    ended = place.headpond(*words)
    assert ended.returncode == 1, ended.said
    assert "What was started goes on in the background; stop it with: headpond down" in ended.said
    assert len(place.processes()) >= 2
    (place.state / UP_FILE / "in the way").rmdir()
    (place.state / UP_FILE).rmdir()
    assert place.headpond("down").returncode == 0
    assert place.processes() == []


PAUSED_IMPORT = """
import signal, sys

class Pause:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            print("importing", flush=True)
            signal.pause()

sys.meta_path.insert(0, Pause())
from headpond.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("typer", ("--version",)),
        ("redis", ("result", "chat/1")),
        ("headpond_workers.cli.deployment", ("up",)),
        ("boto3", ("status",)),
    ],
)
def test_ctrl_c_amid_the_imports_ends_any_command_quietly(tmp_path: Path, module: str, words: tuple[str, ...]) -> None:
    program = PAUSED_IMPORT.format(module=module)
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        try:
            assert command.stdout is not None
            assert command.stdout.readline() == "importing\n"
            command.send_signal(signal.SIGINT)
            out, err = command.communicate(timeout=TIMEOUT_S)
        finally:
            command.kill()
    assert (command.returncode, out, err) == (INTERRUPTED, "", "")


def test_an_interrupt_that_a_finalizer_meets_is_raised_once_more_without_a_trace() -> None:
    program = """
import signal, weakref
from headpond.cli.interrupts import raise_interrupts

class Pool:
    pass

raise_interrupts()
pool = Pool()
weakref.finalize(pool, signal.raise_signal, signal.SIGINT)
try:
    del pool
    print("swallowed", flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("swallowed\ninterrupted\n", "", 0)


def test_what_a_shell_started_in_the_background_goes_on_ignoring_interrupts() -> None:
    program = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from headpond.cli.interrupts import leave_at_once, raise_interrupts
leave_at_once()
signal.raise_signal(signal.SIGINT)
raise_interrupts()
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
