"""What is missing for exllamav2 is told by one clear error each. Every situation is made in a process of its own."""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from exllamav2_cpu.availability import require_exllamav2

require_exllamav2()

from exllamav2_cpu.processes import TESTS, environment, run_python  # noqa: E402
from headpond.errors import EngineUnavailable  # noqa: E402
from headpond_workers.engines.exllama.preflight import TESTED_VERSION, select_devices  # noqa: E402

# argv: JSON of the packages that are not installed, Python that makes the situation, and the settings.
_CHILD = """
import json, os, sys

hidden, situation, settings = json.loads(sys.argv[1])

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
exec(situation)

from headpond.errors import EngineUnavailable
from headpond.tables import ExLlamaV2Model
from headpond_workers.engines.exllama.preflight import import_exllamav2

import logging
logged = []
class Kept(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())
logging.getLogger("headpond_workers").addHandler(Kept())
logging.getLogger("headpond_workers").setLevel(logging.INFO)

table = ExLlamaV2Model.model_validate({"engine": "exllamav2", "path": "model", **settings})
report = {}
try:
    report["version"] = import_exllamav2(table).__version__
except EngineUnavailable as error:
    report["error"] = str(error)
    report["cause"] = type(error.__cause__).__name__
torch = sys.modules.get("torch")
report["threads"] = torch.get_num_threads() if torch else None
report["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
report["imported"] = "exllamav2" in sys.modules
report["logged"] = logged
print(json.dumps(report))
"""

# A torch for CUDA that sees Ampere devices: without a GPU, the way to the checks behind those of torch.
_DEVICES = """
import torch
torch.version.cuda = "12.8"
class Properties:
    name, major = "NVIDIA A100", 8
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: len(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(","))
torch.cuda.get_device_properties = lambda index=0: Properties
"""
_HARNESS = "from exllamav2_cpu import harness; harness.install(devices=2)"
_UNPAGED = {"paged": False, "slots": 1}


def visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def preflight(
    situation: str = "",
    *,
    hidden: tuple[str, ...] = (),
    packages: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **variables: str,
) -> dict[str, Any]:
    """Import exllamav2 in a child process. packages: a folder of further packages that are installed there."""
    env = environment(**variables)
    if packages is not None:
        env["PYTHONPATH"] = f"{packages}:{env['PYTHONPATH']}"
    for name in {"CUDA_VISIBLE_DEVICES", "EXLLAMA_NO_FLASH_ATTN"} - variables.keys():
        env.pop(name, None)
    report: dict[str, Any] = json.loads(
        run_python(["-c", _CHILD, json.dumps([hidden, situation, dict(settings or {})])], env=env)
    )
    return report


def package(folder: Path, name: str, text: str) -> Path:
    """A Python package in a folder. Returns the folder."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return folder


def compiled_part(folder: Path) -> Path:
    """An exllamav2_ext that can be found and loaded."""
    return package(folder, "exllamav2_ext", "")


def broken_library(folder: Path, name: str) -> Path:
    """A compiled module that the dynamic linker refuses."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"no ELF file")
    return folder


def flash_attn(folder: Path, version: str) -> Path:
    package(folder, "flash_attn_2_cuda", "")
    return package(folder, "flash_attn", f"__version__ = {version!r}")


@pytest.mark.slow
def test_a_missing_torch_is_told_with_where_to_get_it() -> None:
    report = preflight(hidden=("torch",))

    assert "PyTorch is not installed" in report["error"]
    assert "Install PyTorch for CUDA or ROCm" in report["error"]


@pytest.mark.slow
def test_a_torch_that_cannot_load_is_told_with_its_reason(tmp_path: Path) -> None:
    report = preflight(packages=package(tmp_path, "torch", "raise OSError('libcudart.so.12: cannot open')"))

    assert "PyTorch is installed but cannot load: libcudart.so.12: cannot open" in report["error"]


@pytest.mark.slow
def test_a_torch_for_the_cpu_is_told_and_another_engine_named() -> None:
    report = preflight()

    assert "is a build for the CPU" in report["error"]
    assert "llamacpp" in report["error"]


@pytest.mark.slow
def test_no_visible_device_is_told_with_the_variable() -> None:
    situation = "import torch; torch.version.cuda = '12.8'"
    hidden_all = preflight(situation, CUDA_VISIBLE_DEVICES="")
    unset = preflight(situation)

    assert "sees no CUDA device (CUDA_VISIBLE_DEVICES=)" in hidden_all["error"]
    assert "sees no CUDA device (CUDA_VISIBLE_DEVICES is not set)" in unset["error"]
    assert "nvidia-smi" in unset["error"]


@pytest.mark.slow
def test_devices_that_are_not_there_are_told() -> None:
    report = preflight(_HARNESS, settings={"devices": [0, 5]})

    assert "devices = [0, 5] names 2 devices, and 1 of them are there (CUDA_VISIBLE_DEVICES=0,5)" in report["error"]


@pytest.mark.slow
def test_a_missing_exllamav2_is_told() -> None:
    report = preflight(_DEVICES, hidden=("exllamav2",))

    assert "exllamav2 is not installed in this environment" in report["error"]
    assert f"wheel of exllamav2 {TESTED_VERSION}" in report["error"]


@pytest.mark.slow
def test_a_compiled_part_that_is_missing_and_cannot_be_compiled_is_told() -> None:
    report = preflight(_DEVICES, PATH="/nowhere")

    assert "exllamav2_ext, is not installed, and cannot be compiled without the CUDA toolkit" in report["error"]
    assert "a C++ compiler (CXX)" in report["error"]
    assert "takes" not in report["error"]
    assert not report["imported"]


@pytest.mark.slow
def test_a_compilation_is_announced_and_its_failure_told(tmp_path: Path) -> None:
    # The toolkit's folder is there, and holds no compiler: the compilation itself begins, and fails.
    toolkit = tmp_path / "cuda"
    toolkit.mkdir()
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("c++", "ninja"):
        # ninja is asked for its version, to see whether it is there.
        (tools / tool).write_text('#!/bin/sh\ntest "$1" = --version\n')
        (tools / tool).chmod(0o755)
    # A torch for the CPU does not look for the toolkit.
    situation = f"{_DEVICES}\nimport torch.utils.cpp_extension; torch.utils.cpp_extension.CUDA_HOME = {str(toolkit)!r}"
    report = preflight(
        situation,
        settings=_UNPAGED,
        PATH=str(tools),
        TORCH_EXTENSIONS_DIR=str(tmp_path),
        TORCH_CUDA_ARCH_LIST="8.0",
    )

    assert any(line.startswith("extension_compiling") and "minutes" in line for line in report["logged"])
    assert "exllamav2 is installed but cannot be imported" in report["error"]


@pytest.mark.slow
def test_a_part_that_was_compiled_in_this_process_is_not_announced_again() -> None:
    # Compiled at the import, it is no package: nothing finds it afterwards.
    report = preflight(f"{_HARNESS}\nimport exllamav2; del sys.modules['exllamav2_ext']")

    assert report["version"] == TESTED_VERSION
    assert not any("extension_compiling" in line for line in report["logged"])


@pytest.mark.slow
def test_a_compiled_part_that_cannot_load_is_told_with_its_own_reason(tmp_path: Path) -> None:
    # exllamav2 says only "name 'exllamav2_ext' is not defined".
    report = preflight(_DEVICES, packages=broken_library(tmp_path, "exllamav2_ext"))

    assert "exllamav2's compiled part cannot load" in report["error"]
    assert "file too short" in report["error"] or "invalid ELF header" in report["error"]
    assert report["cause"] == "ImportError"


@pytest.mark.slow
def test_a_missing_flash_attn_is_told_with_both_ways_out(tmp_path: Path) -> None:
    report = preflight(_DEVICES, packages=compiled_part(tmp_path))

    assert "needs flash-attn 2.5.7 or later, and it is not installed" in report["error"]
    assert "pip install flash-attn" in report["error"]
    assert "paged = false and slots = 1" in report["error"]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["2.5.6", "2.2.1", "1.0.9"])
def test_an_old_flash_attn_is_told_with_its_version(version: str, tmp_path: Path) -> None:
    report = preflight(_DEVICES, packages=flash_attn(compiled_part(tmp_path), version))

    assert f"needs flash-attn 2.5.7 or later, and {version} is installed" in report["error"]


@pytest.mark.slow
def test_a_flash_attn_that_is_switched_off_is_told(tmp_path: Path) -> None:
    packages = flash_attn(compiled_part(tmp_path), "2.7.4")
    report = preflight(_DEVICES, packages=packages, EXLLAMA_NO_FLASH_ATTN="1")

    assert "EXLLAMA_NO_FLASH_ATTN is set" in report["error"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, _UNPAGED])
def test_a_flash_attn_that_cannot_load_is_told_with_its_reason(settings: dict[str, Any], tmp_path: Path) -> None:
    packages = package(compiled_part(tmp_path), "flash_attn", "import flash_attn_2_cuda")
    report = preflight(_DEVICES, packages=broken_library(packages, "flash_attn_2_cuda"), settings=settings)

    assert "flash-attn is installed but cannot load" in report["error"]
    assert "EXLLAMA_NO_FLASH_ATTN=1" in report["error"]


@pytest.mark.slow
def test_a_gpu_older_than_ampere_is_told_by_its_name(tmp_path: Path) -> None:
    situation = _DEVICES + "Properties.name, Properties.major = 'Tesla T4', 7"
    report = preflight(situation, packages=flash_attn(compiled_part(tmp_path), "2.7.4"))

    assert "GPUs of the Ampere generation or newer, and Tesla T4 is older" in report["error"]


@pytest.mark.slow
def test_missing_tokenizers_are_told() -> None:
    report = preflight(_HARNESS, hidden=("tokenizers",))

    assert "tokenizers is not installed" in report["error"]
    assert "pip install tokenizers" in report["error"]


@pytest.mark.slow
def test_an_import_that_fails_for_another_reason_is_told_with_it() -> None:
    report = preflight(_HARNESS, hidden=("rich",))

    assert (
        "exllamav2 is installed but cannot be imported: ModuleNotFoundError: No module named 'rich" in report["error"]
    )


@pytest.mark.slow
def test_the_import_leaves_threads_and_stdout_as_they_were() -> None:
    # The child's report, all of its stdout, would be no JSON otherwise.
    situation = f"{_HARNESS}; import torch; torch.set_num_threads(3)"
    report = preflight(f"{situation}; sys.modules['flash_attn'].__version__ = '2.7.4.post1'")

    assert report["version"] == TESTED_VERSION
    assert report["threads"] == 3


@pytest.mark.slow
def test_what_the_import_prints_goes_to_the_log() -> None:
    situation = (
        _HARNESS
        + "\nimport torch; torch.cuda.get_device_properties = lambda index=0: Old"
        + ("\nclass Old: name, major = 'Tesla T4', 7")
    )
    report = preflight(situation, settings=_UNPAGED)

    assert report["version"] == TESTED_VERSION
    assert any(line.startswith("engine_printed") and "unsupported GPUs" in line for line in report["logged"])


@pytest.mark.slow
def test_devices_are_set_before_torch_is_imported() -> None:
    situation = f"""
import importlib.abc
class Recorder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,0", os.environ["CUDA_VISIBLE_DEVICES"]
            assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
sys.meta_path.insert(0, Recorder())
sys.path.insert(0, {str(TESTS)!r})
"""
    report = preflight(situation, settings={"devices": [1, 0]})

    assert report["visible"] == "1,0"
    assert "is a build for the CPU" in report["error"]


def test_devices_are_counted_among_those_that_the_process_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7a,6")

    select_devices((1, 2))
    assert visible() == "GPU-7a,6"
    select_devices((0,))
    assert visible() == "4"
    with pytest.raises(
        EngineUnavailable, match=r"names device 3, but CUDA_VISIBLE_DEVICES=4,GPU-7a,6 gives .* 3 device"
    ):
        select_devices((0, 3))
    select_devices(None)
    assert visible() == "4,GPU-7a,6"


def test_without_devices_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    select_devices(None)
    assert visible() is None
    select_devices((2,))
    assert visible() == "2"
    select_devices(None)
    assert visible() is None


def test_a_process_that_uses_cuda_already_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    select_devices((0, 1))
    with pytest.raises(EngineUnavailable, match=r"uses CUDA already, with CUDA_VISIBLE_DEVICES=0,1"):
        select_devices((1,))
    assert visible() == "0,1"
