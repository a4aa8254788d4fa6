"""Supervision: the files that supervisord reads, the launcher, the socket's folder, and a real supervisord."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from supervisor.options import ServerOptions
from supervisor.xmlrpc import Faults

from headpond.errors import ConfigError, DeploymentError, InvalidRequest
from headpond.settings import Settings, check_settings
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.cli.log_lines import coming, log_files, recent
from headpond_workers.supervision import programs
from headpond_workers.supervision.convergence import converge
from headpond_workers.supervision.launcher import LONGEST_DELAY_S, allowed_environment, hold_back, parse
from headpond_workers.supervision.ports import free_ports, is_free, is_open
from headpond_workers.supervision.private_files import write_private
from headpond_workers.supervision.programs import Program
from headpond_workers.supervision.run_file import (
    RunFile,
    StorageAccess,
    read_run_file,
    remove_run_file,
    write_run_file,
)
from headpond_workers.supervision.runtime_folder import (
    check_runtime_folder,
    make_runtime_folder,
    remove_runtime_folder,
    socket_candidates,
)
from headpond_workers.supervision.scaling import remember, worker_counts
from headpond_workers.supervision.status import join
from headpond_workers.supervision.supervisor import (
    SHUTDOWN_STATE,
    Process,
    ProcessState,
    Supervisor,
    SupervisorGone,
    SupervisorLeaving,
    find_supervisor,
    start_supervisord,
)
from headpond_workers.supervision.supervisord_process import (
    CONF_NAME,
    noted_socket,
    process_runs,
    supervisord_pid,
    wait_for_end,
)

ODD_FOLDER = 'it\'s %(here)s 100%d; a #b ünï "q" \\n'
"""Everything that supervisord's files read as something else."""
STAND_IN = (sys.executable, "-c", "import signal; signal.pause()")
SCRIPTED = {"engine": "scripted"}


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def settings_in(folder: Path, **models: dict[str, object]) -> Settings:
    return check_settings({"models": models or {"chat": SCRIPTED}}, file=folder / "headpond.toml")


def parsed_by_supervisord(state_folder: Path, *parts: Program) -> dict[str, object]:
    """What supervisord itself makes of the files, by program."""
    for name in (programs.LOG_FOLDER, programs.CONF_FOLDER):
        (state_folder / name).mkdir(parents=True, exist_ok=True)
    conf = programs.supervisord_conf(socket=Path("/tmp/headpond-0-x/supervisor.sock"), state_folder=state_folder)  # noqa: S108
    (state_folder / CONF_NAME).write_text(conf)
    for part in parts:
        (state_folder / programs.CONF_FOLDER / f"{part.name}.conf").write_text(programs.render(part))
    options = ServerOptions()
    with contextlib.chdir(state_folder):
        options.realize(["-c", CONF_NAME, "-n"])
    return {group.name: group.process_configs[0] for group in options.process_group_configs}


class TestPrograms:
    def test_a_command_line_survives_every_odd_character_of_a_path(self, tmp_path: Path) -> None:
        folder = tmp_path / ODD_FOLDER
        found = parsed_by_supervisord(folder / ".headpond", programs.worker(settings_in(folder), "chat", 0))
        words = shlex.split(found["chat-0"].command)
        assert words[words.index("--config") + 1] == str(folder / "headpond.toml")
        assert words[-4:] == ["--model", "chat", "--instance", "chat-0"]

    def test_a_worker_stops_by_sigterm_and_has_longer_than_its_drain(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path, chat={**SCRIPTED, "drain_timeout_s": 99.5})
        config = parsed_by_supervisord(tmp_path, programs.worker(settings, "chat", 0))["chat-0"]
        assert config.stopsignal == signal.SIGTERM
        assert config.stopwaitsecs > 99.5 + 5
        assert config.killasgroup is True

    def test_only_a_worker_that_cannot_load_is_left_alone(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        found = parsed_by_supervisord(
            tmp_path,
            programs.worker(settings, "chat", 0),
            programs.persister(settings),
            programs.server(programs.VALKEY, ["/bin/valkey", "/a/conf"]),
        )
        assert found["chat-0"].exitcodes == [78]
        assert found["chat-0"].autorestart.__name__ == "RestartWhenExitUnexpected"
        assert found["persister"].autorestart.__name__ == "RestartUnconditionally"
        assert found["valkey"].autorestart.__name__ == "RestartUnconditionally"
        # With a start time, an exit in the first second is retried whatever its status, and given up in the end.
        assert {config.startsecs for config in found.values()} == {0}

    def test_servers_start_first_and_stop_last(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        order = [
            programs.server(programs.VALKEY, ["v"]),
            programs.server(programs.SEAWEED, ["s"]),
            programs.persister(settings),
            programs.worker(settings, "chat", 0),
        ]
        assert [part.priority for part in order] == sorted({part.priority for part in order})

    def test_each_worker_is_a_program_of_its_own_with_a_rotated_log(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        found = parsed_by_supervisord(tmp_path, *(programs.worker(settings, "chat", index) for index in range(3)))
        assert sorted(found) == ["chat-0", "chat-1", "chat-2"]
        assert [found[name].stdout_logfile for name in sorted(found)] == [f"logs/chat-{n}.log" for n in range(3)]
        assert {config.stdout_logfile_maxbytes for config in found.values()} == {10 << 20}

    def test_a_worker_may_see_the_secrets_of_its_own_tables_only(self, tmp_path: Path) -> None:
        tables = {
            "redis": {"url": "redis://h", "password": {"env": "REDIS_PASSWORD"}},
            "storage": {
                "endpoint_url": "http://s",
                "access_key": {"env": "S3_ACCESS"},
                "secret_key": {"file": "/run/secret"},
            },
            "models": {"chat": SCRIPTED, "code-2.5": SCRIPTED},
        }
        settings = check_settings(tables, file=tmp_path / "headpond.toml")
        worker = programs.worker(settings, "code-2.5", 0)
        # A worker never speaks to storage: those keys are the persister's.
        assert worker.allow == ("REDIS_PASSWORD",)
        assert worker.allow_prefixes == ("HEADPOND_MODELS__CODE_2_5__",)
        assert programs.persister(settings).allow == ("REDIS_PASSWORD", "S3_ACCESS")
        assert programs.server(programs.VALKEY, ["v"]).allow == ()

    def test_changed_settings_change_the_file_of_that_model_alone(self, tmp_path: Path) -> None:
        def files(**chat: object) -> dict[str, str]:
            settings = settings_in(tmp_path, chat={**SCRIPTED, **chat}, code=SCRIPTED)
            return {model: programs.render(programs.worker(settings, model, 0)) for model in settings.models}

        before, faster, more = files(), files(tokens_per_s=5), files(workers=3)
        assert faster["chat"] != before["chat"]
        assert faster["code"] == before["code"]
        # How many siblings it has is no reason to restart a worker.
        assert more == before

    @pytest.mark.parametrize("name", ["proj[1]", "any*", "what?"])
    def test_a_folder_that_supervisord_cannot_include_from_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DeploymentError, match="Rename that folder"):
            programs.supervisord_conf(socket=Path("/run/s"), state_folder=tmp_path / name)

    def test_a_path_with_a_line_end_cannot_add_a_setting(self, tmp_path: Path) -> None:
        evil = settings_in(tmp_path / "a\nautorestart=false")
        with pytest.raises(DeploymentError, match="control characters"):
            programs.render(programs.worker(evil, "chat", 0))

    @pytest.mark.parametrize(
        ("name", "split"),
        [("chat-0", ("chat", 0)), ("chat-1-12", ("chat-1", 12)), ("persister", None), ("a-b", None), ("-", None)],
    )
    def test_a_program_name_tells_model_and_index(self, name: str, split: tuple[str, int] | None) -> None:
        assert programs.split_worker_name(name) == split


def launched(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headpond_workers.supervision.launcher", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


SHOW_ENVIRONMENT = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]


class TestLauncher:
    def test_a_program_sees_the_allowed_names_and_no_other(self) -> None:
        kept = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "0",
            "HEADPOND_CACHE": "/cache",
            "HEADPOND_MODELS__CHAT__SLOTS": "8",
            "KEY_A": "mine",
        }
        dropped = {
            "KEY_B": "another model's",
            "AWS_SECRET_ACCESS_KEY": "cloud",
            "KEY_AB": "begins alike",
            "HEADPOND_MODELS__CODE__API_KEY": "another model's",
            "https_proxy": "http://user:password@proxy",
            "LD_PRELOAD": "",
        }
        allow = ["--allow", "KEY_A", "--allow-prefix", "HEADPOND_MODELS__CHAT__"]
        found = launched([*allow, "--", *SHOW_ENVIRONMENT], {**kept, **dropped})
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout) == kept

    def test_a_secret_reference_is_a_name_and_no_pattern(self) -> None:
        assert allowed_environment({"A": "1", "SECRET": "2"}, allow=["*", "S*"]) == {}

    def test_the_program_keeps_the_launchers_pid(self) -> None:
        show_pid = [sys.executable, "-c", "import os; print(os.getpid())"]
        command = [sys.executable, "-m", "headpond_workers.supervision.launcher", "--", *show_pid]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            out, _ = process.communicate(timeout=30)
        assert int(out) == process.pid

    def test_a_command_that_cannot_run_is_not_worth_a_restart(self) -> None:
        found = launched(["--", "/no/such/program"], dict(os.environ))
        assert found.returncode == 78
        assert "cannot run /no/such/program: No such file or directory" in found.stderr

    @pytest.mark.parametrize("arguments", [[], ["--"], ["--allow", "--", "a"], ["--bogus", "x", "--", "a"], ["a"]])
    def test_arguments_that_say_nothing_sensible_are_refused(self, arguments: list[str]) -> None:
        with pytest.raises(ValueError, match="usage: launcher"):
            parse(arguments)

    def test_a_program_that_keeps_ending_at_once_is_held_back_longer_each_time(self, tmp_path: Path) -> None:
        file, now_s, delays = tmp_path / "chat-0", 1000.0, []
        for _ in range(14):
            delays.append(hold_back(file, now_s=now_s))
            now_s += delays[-1] + 0.5  # it lived for half a second
        assert delays[:4] == [0, 1, 2, 3]
        assert delays[-1] == LONGEST_DELAY_S
        assert hold_back(file, now_s=now_s + 60) == 0  # it lived for a minute

    def test_a_damaged_note_of_starts_holds_nothing_back(self, tmp_path: Path) -> None:
        (tmp_path / "chat-0").write_bytes(b"\xff\x00 what")
        assert hold_back(tmp_path / "chat-0", now_s=5.0) == 0

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a process that its parent died")
    def test_a_program_ends_when_its_supervisor_is_killed(self) -> None:
        parent = (
            "import subprocess, sys, time\n"
            "p = subprocess.Popen([sys.executable, '-m', 'headpond_workers.supervision.launcher', '--', *sys.argv[1:]],"
            " stdout=subprocess.PIPE)\n"
            "p.stdout.readline()\n"
            "print(p.pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        child = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
        with subprocess.Popen([sys.executable, "-c", parent, *child], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                pid = int(process.stdout.readline())
                assert process_runs(pid)
            finally:
                process.kill()
            wait_until(lambda: not process_runs(pid))


class TestPorts:
    def test_ports_are_different_free_and_below_the_ephemeral_range(self) -> None:
        ports = free_ports(20, twin_offset=10_000)
        every = ports + [port + 10_000 for port in ports]
        assert len(set(every)) == 40
        assert max(every) <= 32_767
        assert all(is_free(port) for port in every)

    def test_a_port_in_use_is_not_free(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            assert not is_free(port)
            assert is_open(port)
        assert is_free(port)
        assert not is_open(port)

    def test_more_ports_than_there_are_is_an_error_that_says_so(self) -> None:
        with pytest.raises(DeploymentError, match=r"of 5000 ports are free"):
            free_ports(5000, twin_offset=20_000)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="hp-", dir="/tmp") as folder:
        yield Path(folder)


class TestRuntimeFolder:
    def test_the_socket_path_is_short_however_deep_the_configuration_stands(self, tmp_path: Path) -> None:
        deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 12)
        for environment in ({}, {"XDG_RUNTIME_DIR": "/run/user/1000"}, {"XDG_RUNTIME_DIR": f"/run/{'x' * 80}"}):
            for path in socket_candidates(deep, environment):
                # supervisord binds <path>.<pid> first; 104 bytes is the smallest limit of a system.
                assert len(os.fsencode(f"{path}.4194304")) < 104
        assert str(socket_candidates(deep, {"XDG_RUNTIME_DIR": "/run/user/1000"})[0]).startswith("/run/user/1000/")
        assert len(socket_candidates(deep, {"XDG_RUNTIME_DIR": f"/run/{'x' * 80}"})) == 1

    def test_two_deployments_have_two_sockets(self, tmp_path: Path) -> None:
        assert socket_candidates(tmp_path / "a", {}) != socket_candidates(tmp_path / "b", {})

    def test_a_folder_that_others_may_enter_is_refused(self, short_folder: Path) -> None:
        place = short_folder / "headpond" / "supervisor.sock"
        make_runtime_folder(place)
        assert place.parent.stat().st_mode & 0o777 == 0o700
        place.parent.chmod(0o755)
        with pytest.raises(DeploymentError, match="Others may enter"):
            make_runtime_folder(place)

    def test_a_link_planted_in_its_place_is_refused(self, short_folder: Path) -> None:
        (short_folder / "elsewhere").mkdir(mode=0o700)
        (short_folder / "headpond").symlink_to(short_folder / "elsewhere")
        with pytest.raises(DeploymentError, match="is not a folder"):
            make_runtime_folder(short_folder / "headpond" / "supervisor.sock")

    def test_a_folder_of_somebody_else_is_refused(self, short_folder: Path) -> None:
        foreign = Path("/etc")
        if os.geteuid() == 0:
            foreign = short_folder / "foreign"
            foreign.mkdir(mode=0o700)
            os.chown(foreign, 12345, 12345)
        with pytest.raises(DeploymentError, match="belongs to user id"):
            check_runtime_folder(foreign / "supervisor.sock")


class TestRunFile:
    RUN = RunFile(
        redis_url="redis://:secret@127.0.0.1:1/0",
        storage=StorageAccess("http://127.0.0.1:2", "headpond", "us-east-1", "KEY", "SECRET"),
        supervisor_socket="/run/s.sock",
        supervisor_pid=7,
        config="/a/headpond.toml",
    )

    @pytest.mark.parametrize("storage", [RUN.storage, None])
    def test_what_is_written_is_read_back(self, tmp_path: Path, storage: StorageAccess | None) -> None:
        run = RunFile(self.RUN.redis_url, storage, "/run/s.sock", 7, "/a/headpond.toml")
        write_run_file(tmp_path, run)
        assert read_run_file(tmp_path) == run
        assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600
        remove_run_file(tmp_path)
        assert read_run_file(tmp_path) is None

    def test_its_secrets_are_not_in_its_repr(self) -> None:
        assert "secret" not in repr(self.RUN).lower().replace("secret_key", "")

    @pytest.mark.parametrize(
        "text", ["", "[]", '{"schema": "headpond/run", "v": 2}', '{"schema": "headpond/run", "v": 1}']
    )
    def test_a_file_of_another_kind_is_refused_with_what_to_do(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(DeploymentError, match="Remove it"):
            read_run_file(tmp_path)

    def test_a_full_disk_leaves_the_old_file_and_says_so(self, tmp_path: Path) -> None:
        write_private(tmp_path / "run.json", "old")
        # A file size limit stands in for the disk: the kernel refuses the write in the same place.
        code = (
            "import resource, signal, sys; from pathlib import Path\n"
            "from headpond_workers.supervision.private_files import write_private\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
            "write_private(Path(sys.argv[1]), 'x' * 1000)\n"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run.json")], capture_output=True, text=True, check=False
        )
        assert "DeploymentError: Cannot write" in found.stderr
        assert (tmp_path / "run.json").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


class TestScaling:
    def test_a_count_is_remembered_until_the_configuration_says_otherwise(self, tmp_path: Path) -> None:
        two = settings_in(tmp_path, chat={**SCRIPTED, "workers": 2}, code=SCRIPTED)
        two.state_folder.mkdir()
        assert worker_counts(two) == {"chat": 2, "code": 1}
        remember(two, {"chat": 5})
        assert worker_counts(two) == {"chat": 5, "code": 1}
        three = settings_in(tmp_path, chat={**SCRIPTED, "workers": 3}, code=SCRIPTED)
        assert worker_counts(three) == {"chat": 3, "code": 1}

    def test_an_unknown_model_or_an_absurd_count_is_refused(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        settings.state_folder.mkdir()
        with pytest.raises(ConfigError, match="did you mean 'chat'"):
            remember(settings, {"chatt": 1})
        with pytest.raises(InvalidRequest, match="0 to 64"):
            remember(settings, {"chat": 65})
        assert worker_counts(settings) == {"chat": 1}


NOW_MS = 1_000_000


def row(instance: str, pid: int, state: WorkerState = WorkerState.READY, **fields: object) -> WorkerRow:
    values: dict[str, object] = {
        "boot": f"boot-{instance}-{pid}", "model": "chat", "version": "local-1", "host": "here", "pid": pid,
        "instance": instance, "slots": 4, "busy": 1, "state": state, "last_error": "", "started_ms": pid,
        "seen_ms": NOW_MS - 100, **fields,
    }  # fmt: skip
    return WorkerRow(**values)  # type: ignore[arg-type]


def process(name: str, state: ProcessState, pid: int = 0, exit_status: int = 0) -> Process:
    return Process(name, state, pid, exit_status, started_s=1)


class TestStatus:
    @staticmethod
    def joined(processes: list[Process], rows: list[WorkerRow]) -> dict[str, tuple[str, str]]:
        found = join(
            {each.name: each for each in processes},
            rows,
            host="here",
            now_ms=NOW_MS,
            lease_s={"chat": 10.0},
            last_log_line=lambda name: f"log of {name}",
        )
        return {worker.instance: (worker.state.value, worker.last_error) for worker in found}

    def test_a_row_of_an_earlier_life_does_not_speak_for_a_process(self) -> None:
        running = process("chat-0", ProcessState.RUNNING, pid=20)
        assert self.joined([running], [row("chat-0", 10)]) == {"chat-0": ("starting", "")}
        assert self.joined([running], [row("chat-0", 10), row("chat-0", 20)]) == {"chat-0": ("ready", "")}

    def test_a_worker_that_could_not_load_shows_its_own_words(self) -> None:
        ended = process("chat-0", ProcessState.EXITED, exit_status=78)
        own = row("chat-0", 10, WorkerState.FAILED, last_error="no such file")
        assert self.joined([ended], [own]) == {"chat-0": ("failed", "no such file")}
        assert self.joined([ended], []) == {"chat-0": ("failed", "log of chat-0")}

    def test_a_crashed_worker_is_starting_since_it_is_started_again(self) -> None:
        ended = process("chat-0", ProcessState.EXITED, exit_status=-1)
        assert self.joined([ended], [row("chat-0", 10)]) == {"chat-0": ("starting", "log of chat-0")}

    def test_a_ready_worker_that_says_nothing_is_marked_and_a_loading_one_is_not(self) -> None:
        silent = {"seen_ms": NOW_MS - 61_000}
        running = process("chat-0", ProcessState.RUNNING, pid=10)
        ready, loading = row("chat-0", 10, **silent), row("chat-0", 10, WorkerState.LOADING, **silent)
        assert self.joined([running], [ready]) == {"chat-0": ("ready", "silent for 61 s")}
        assert self.joined([running], [loading]) == {"chat-0": ("loading", "")}

    def test_workers_of_other_machines_show_while_they_are_heard_of(self) -> None:
        there = row("chat-0", 10, host="there")
        gone = row("chat-1", 11, host="there", seen_ms=NOW_MS - 300_000)
        assert self.joined([], [there, gone]) == {"chat-0": ("ready", "")}

    def test_programs_that_are_no_workers_are_left_out(self) -> None:
        assert self.joined([process("valkey", ProcessState.RUNNING, pid=3)], []) == {}


class TestLogs:
    def test_a_log_cannot_command_the_terminal(self, tmp_path: Path) -> None:
        log = tmp_path / "chat-0.log"
        log.write_bytes("Grüße, 世界\na\x1b[2Jb\rc\u202ed\te\x00\n".encode() + b"\xff\n")
        assert list(recent([log], 9)) == ["Grüße, 世界", "a\\x1b[2Jb\\x0dc\\u202ed\te\\x00", "\ufffd"]

    def test_a_model_names_the_logs_of_its_workers(self, tmp_path: Path) -> None:
        settings = settings_in(tmp_path)
        folder = settings.state_folder / "logs"
        folder.mkdir(parents=True)
        for name in ("chat-0", "chat-1", "chat-2-0", "valkey"):
            (folder / f"{name}.log").write_text(f"one\ntwo of {name}\x1b[0m\n")
        assert list(recent(log_files(settings, "chat"), 1)) == [
            "chat-0 | two of chat-0\\x1b[0m",
            "chat-1 | two of chat-1\\x1b[0m",
        ]
        assert list(recent(log_files(settings, "valkey"), 5)) == ["one", "two of valkey\\x1b[0m"]
        with pytest.raises(DeploymentError, match="Logs: chat, chat-0, chat-1, chat-2, chat-2-0, valkey"):
            log_files(settings, "chatt")

    def test_following_a_log_goes_on_over_a_rotation(self, tmp_path: Path) -> None:
        log = tmp_path / "chat-0.log"
        log.write_text("old\n")
        tail = _Collected(coming([log]))
        tail.until_polled()
        with log.open("a") as file:
            file.write("one\ntw")
            file.flush()
            file.write("o\n")
        assert tail.next() == "one"
        assert tail.next() == "two"
        log.rename(tmp_path / "chat-0.log.1")
        log.write_text("three\n")
        assert tail.next() == "three"


class _Collected:
    """Reads an endless iterator in a thread, so that a test can wait for its next line with a deadline."""

    def __init__(self, lines: Iterator[str]) -> None:
        import queue
        import threading

        self._found: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._thread.start()

    def _read(self, lines: Iterator[str]) -> None:
        for line in lines:
            self._found.put(line)

    def until_polled(self) -> None:
        """Until the reader has opened its file: then it has no line, and holds the file open."""
        mine = psutil.Process()
        wait_until(lambda: any(file.path.endswith("chat-0.log") for file in mine.open_files()))

    def next(self) -> str:
        return self._found.get(timeout=20)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[tuple[Supervisor, Settings]]:
    """A real supervisord that runs nothing yet, in a folder with an odd name; it ends with the test."""
    settings = settings_in(tmp_path / ODD_FOLDER)
    state = settings.state_folder
    for name in (programs.LOG_FOLDER, programs.CONF_FOLDER, programs.STARTS_FOLDER):
        (state / name).mkdir(parents=True)
    place = socket_candidates(state, {})[0]
    make_runtime_folder(place)
    write_private(state / CONF_NAME, programs.supervisord_conf(socket=place, state_folder=state))
    supervisor = start_supervisord(state, place, log_folder=state / programs.LOG_FOLDER)
    pid = supervisor.pid()
    try:
        yield supervisor, settings
    finally:
        if process_runs(pid):
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not process_runs(pid))
        remove_runtime_folder(place)


def stand_ins(*names: str, argv: tuple[str, ...] = STAND_IN, digest: str = "") -> list[Program]:
    return [Program(name, argv, priority=300, stop_wait_s=10, ends_for_good=(78,), digest=digest) for name in names]


def pids(supervisor: Supervisor) -> dict[str, int]:
    return {name: found.pid for name, found in supervisor.processes().items()}


def settle(supervisor: Supervisor, settings: Settings, wanted: list[Program], keep: tuple[str, ...] = ()) -> None:
    converge(supervisor, wanted, keep=keep, settings=settings, progress=lambda line: None)
    wait_until(lambda: all(pids(supervisor).values()))


class TestSupervisord:
    def test_scaling_keeps_the_pids_of_those_that_stay(self, supervised: tuple[Supervisor, Settings]) -> None:
        supervisor, settings = supervised
        settle(supervisor, settings, stand_ins("chat-0", "chat-1"))
        two = pids(supervisor)
        settle(supervisor, settings, stand_ins("chat-0", "chat-1", "chat-2", "chat-3"))
        four = pids(supervisor)
        assert sorted(four) == ["chat-0", "chat-1", "chat-2", "chat-3"]
        assert {name: four[name] for name in two} == two
        settle(supervisor, settings, stand_ins("chat-0"))
        assert pids(supervisor) == {"chat-0": two["chat-0"]}
        assert [pid for pid in four.values() if process_runs(pid)] == [two["chat-0"]]
        assert [path.name for path in (settings.state_folder / "conf.d").iterdir()] == ["chat-0.conf"]

    def test_changed_settings_restart_that_program_alone(self, supervised: tuple[Supervisor, Settings]) -> None:
        supervisor, settings = supervised
        settle(supervisor, settings, stand_ins("chat-0", "code-0", digest="a"))
        before = pids(supervisor)
        settle(supervisor, settings, [*stand_ins("chat-0", digest="b"), *stand_ins("code-0", digest="a")])
        after = pids(supervisor)
        assert after["chat-0"] != before["chat-0"]
        assert after["code-0"] == before["code-0"]

    def test_a_killed_program_is_started_again(self, supervised: tuple[Supervisor, Settings]) -> None:
        supervisor, settings = supervised
        settle(supervisor, settings, stand_ins("chat-0"))
        for _ in range(3):
            before = pids(supervisor)["chat-0"]
            os.kill(before, signal.SIGKILL)
            wait_until(lambda before=before: pids(supervisor)["chat-0"] not in (0, before))
        assert supervisor.processes()["chat-0"].state in (ProcessState.STARTING, ProcessState.RUNNING)

    def test_a_program_that_cannot_load_is_left_alone_at_once(self, supervised: tuple[Supervisor, Settings]) -> None:
        supervisor, settings = supervised
        wanted = stand_ins("chat-0", argv=(sys.executable, "-c", "print('no model'); raise SystemExit(78)"))
        converge(supervisor, wanted, settings=settings, progress=lambda line: None)
        wait_until(lambda: supervisor.processes()["chat-0"].state is ProcessState.EXITED)
        assert supervisor.processes()["chat-0"].exit_status == 78
        log = settings.state_folder / "logs" / "chat-0.log"
        wait_until(lambda: log.read_text().endswith("\nno model\n"))

    def test_it_has_the_only_socket_and_that_is_ours_alone(self, supervised: tuple[Supervisor, Settings]) -> None:
        supervisor, _ = supervised
        assert supervisor.socket.stat().st_mode & 0o777 == 0o700
        daemon = psutil.Process(supervisor.pid())
        assert [found for found in daemon.net_connections("inet") if found.status == psutil.CONN_LISTEN] == []

    def test_what_it_ran_ends_with_it_when_it_is_killed(self, supervised: tuple[Supervisor, Settings]) -> None:
        supervisor, settings = supervised
        settle(supervisor, settings, stand_ins("chat-0", "chat-1"))
        running = pids(supervisor)
        wait_until(lambda: all(psutil.Process(pid).cmdline() == list(STAND_IN) for pid in running.values()))
        os.kill(supervisor.pid(), signal.SIGKILL)
        wait_until(lambda: not any(process_runs(pid) for pid in running.values()))
        assert find_supervisor([supervisor.socket]) is None
        with pytest.raises(SupervisorGone, match="does not answer"):
            supervisor.processes()

    def test_one_that_is_about_to_end_is_waited_for_and_not_commanded(
        self, supervised: tuple[Supervisor, Settings]
    ) -> None:
        supervisor, settings = supervised
        assert SHUTDOWN_STATE == Faults.SHUTDOWN_STATE
        assert noted_socket(settings.state_folder) == [supervisor.socket]
        deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
        settle(supervisor, settings, stand_ins("chat-0", argv=(sys.executable, "-c", deaf)))
        log = settings.state_folder / "logs" / "chat-0.log"
        wait_until(lambda: "deaf" in log.read_text())
        daemon, worker = supervisor.pid(), pids(supervisor)["chat-0"]
        assert supervisord_pid(settings.state_folder) == daemon
        os.kill(daemon, signal.SIGTERM)

        def leaves() -> bool:
            try:
                find_supervisor([supervisor.socket])
            except SupervisorLeaving:
                return True
            return False

        wait_until(leaves)
        with pytest.raises(DeploymentError, match="has not ended"):
            wait_for_end(daemon, timeout_s=0)
        os.kill(worker, signal.SIGKILL)
        wait_for_end(daemon, timeout_s=20)
        assert find_supervisor([supervisor.socket]) is None
        assert supervisord_pid(settings.state_folder) is None

    def test_a_configuration_that_it_refuses_is_shown_in_its_own_words(
        self, supervised: tuple[Supervisor, Settings], tmp_path: Path
    ) -> None:
        state = tmp_path / "broken"
        (state / "logs").mkdir(parents=True)
        (state / CONF_NAME).write_text("[supervisord]\nlogfile=/no/such/folder/log\n")
        with pytest.raises(DeploymentError, match=r"did not start[\s\S]*/no/such/folder"):
            start_supervisord(state, tmp_path / "none.sock", log_folder=state / "logs")
