"""What must be there before exllamav2 can run, checked one by one, and the import itself.

exllamav2 tells of most of these by an error of another place, or not at all: an extension that cannot be loaded ends
as "name 'exllamav2_ext' is not defined". Here each is one EngineUnavailable with what is missing and how to get it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from headpond.errors import EngineUnavailable
from headpond.tables import ExLlamaV2Model

log = logging.getLogger(__name__)

TESTED_VERSION = "0.3.2"

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_NO_FLASH_ATTN = "EXLLAMA_NO_FLASH_ATTN"
_MIN_FLASH_ATTN = [2, 5, 7]
_AMPERE = 8
_INSTALL_TORCH = "Install PyTorch for CUDA or ROCm, as pytorch.org shows for your system."
_INSTALL_WHEEL = (
    f"Install a wheel of exllamav2 {TESTED_VERSION} with its compiled part, from the project's releases on GitHub: its "
    "name says for which versions of Python, torch and CUDA it is."
)
_UNPAGED = "or write paged = false and slots = 1"

# What select_devices found in the environment, and what it wrote there: a second engine in this process counts its
# devices as the first one did.
_inherited: str | None = None
_written: str | None = None


def import_exllamav2(settings: ExLlamaV2Model) -> ModuleType:
    """The package, its generator imported too. Raises EngineUnavailable for the first thing that is missing.

    Sets CUDA_VISIBLE_DEVICES from settings.devices, which are counted among the devices that the process was given.
    What the import prints goes to the log; torch's number of threads stays as it was.
    """
    select_devices(settings.devices)
    torch = _import_torch()
    threads = torch.get_num_threads()
    try:
        _check_torch(torch)
        _check_visible(torch, settings.devices)
        if not _is_there("exllamav2"):
            raise EngineUnavailable(f"exllamav2 is not installed in this environment. {_INSTALL_WHEEL}")
        _check_extension(torch)
        _check_flash_attention(torch, paged=settings.paged)
        # Not among the requirements that the wheel names, yet imported with it.
        if not _is_there("tokenizers"):
            raise EngineUnavailable(
                "tokenizers is not installed, and exllamav2 reads tokenizer.json with it. Run: pip install tokenizers"
            )
        package = _import_package()
        # exllamav2 decides that by itself, while it is imported.
        if settings.paged and not sys.modules["exllamav2.attn"].has_flash_attn_with_paged:
            raise EngineUnavailable(
                "exllamav2 did not accept the installed flash-attn for paged attention. "
                f"Install flash-attn 2.5.7 or later again, {_UNPAGED}."
            )
    finally:
        # exllamav2 sets it to 1 for the whole process.
        torch.set_num_threads(threads)
    return package


def select_devices(devices: tuple[int, ...] | None) -> None:
    """Let this process see no other CUDA devices than these. To be called before torch is imported.

    devices: numbers among those that CUDA_VISIBLE_DEVICES leaves; without it, as nvidia-smi counts them. None: all.
    Raises EngineUnavailable for a device that is not among them, or if CUDA has been started with others.
    """
    global _inherited, _written
    if os.environ.get(_VISIBLE) != _written or _written is None:
        _inherited, _written = os.environ.get(_VISIBLE), None
    if devices is None:
        wanted = _inherited
    elif _inherited is None:
        wanted = ",".join(map(str, devices))
    else:
        visible = [name.strip() for name in _inherited.split(",") if name.strip()]
        missing = [str(device) for device in devices if device >= len(visible)]
        if missing:
            raise EngineUnavailable(
                f"devices names device {', '.join(missing)}, but {_VISIBLE}={_inherited} gives this process "
                f"{len(visible)} device(s), counted from 0. Correct devices, or {_VISIBLE}."
            )
        wanted = ",".join(visible[device] for device in devices)
    if wanted == os.environ.get(_VISIBLE):
        return
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise EngineUnavailable(
            f"This process uses CUDA already, with {_VISIBLE}={os.environ.get(_VISIBLE, '(not set)')}, and cannot go "
            f"to devices {wanted or '(all)'} any more. Load this model in a process of its own."
        )
    # CUDA counts the fastest device first otherwise, nvidia-smi does not.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if wanted is None:
        del os.environ[_VISIBLE]
    else:
        os.environ[_VISIBLE] = wanted
    _written = wanted


@contextlib.contextmanager
def stdout_in_log(logger: logging.Logger) -> Iterator[None]:
    """Send what Python code prints to the log: the stdout of a worker is not for exllamav2's notices."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if line.strip():
                logger.info("engine_printed text=%r", line.strip()[:500])


def flash_attention_works(torch: Any) -> bool:
    """Whether exllamav2 has flash-attn, and every visible device can run it. To be called after the import."""
    return bool(sys.modules["exllamav2.attn"].has_flash_attn) and not _older_than_ampere(torch)


def _is_there(name: str) -> bool:
    """Whether a package can be found. Nothing is imported."""
    return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None


def _import_torch() -> Any:
    if not _is_there("torch"):
        raise EngineUnavailable(f"PyTorch is not installed here, and exllamav2 runs on it. {_INSTALL_TORCH}")
    try:
        return importlib.import_module("torch")
    except (ImportError, OSError) as error:
        raise EngineUnavailable(f"PyTorch is installed but cannot load: {_line(error)}. {_INSTALL_TORCH}") from error


def _check_torch(torch: Any) -> None:
    if not (torch.version.cuda or torch.version.hip):
        raise EngineUnavailable(
            f"PyTorch {torch.__version__} is a build for the CPU, and exllamav2 runs on GPUs only. {_INSTALL_TORCH} "
            "To serve a model on the CPU, use the engine llamacpp."
        )
    if not torch.cuda.is_available():
        setting = f"{_VISIBLE}={os.environ[_VISIBLE]}" if _VISIBLE in os.environ else f"{_VISIBLE} is not set"
        raise EngineUnavailable(
            f"PyTorch {torch.__version__} sees no CUDA device ({setting}). See whether nvidia-smi (or rocm-smi) shows "
            "one; if it does, correct devices in the model's table or the variable, or give the container the device."
        )


def _check_visible(torch: Any, devices: tuple[int, ...] | None) -> None:
    count = torch.cuda.device_count()
    if devices is not None and count < len(devices):
        raise EngineUnavailable(
            f"devices = {list(devices)} names {len(devices)} devices, and {count} of them are there "
            f"({_VISIBLE}={os.environ.get(_VISIBLE)}). Name those that nvidia-smi shows, counted from 0."
        )


def _check_extension(torch: Any) -> None:
    """exllamav2_ext, the compiled part: loaded here, since exllamav2 swallows the reason why it cannot be."""
    if sys.modules.get("exllamav2.ext") is not None:
        # Imported before. What torch compiled then is no package that could be found.
        return
    if not _is_there("exllamav2_ext"):
        _check_compilers(torch)
        log.info("extension_compiling hint=the installed wheel has no compiled part; its first import takes minutes")
        return
    try:
        importlib.import_module("exllamav2_ext")
    except (ImportError, OSError) as error:
        raise EngineUnavailable(
            f"exllamav2's compiled part cannot load: {_line(error)}. As a rule it was built for another version of "
            f"torch than {torch.__version__}. {_INSTALL_WHEEL}"
        ) from error


def _check_compilers(torch: Any) -> None:
    """What torch needs to compile the extension."""
    extensions: Any = importlib.import_module("torch.utils.cpp_extension")
    missing = []
    if (extensions.ROCM_HOME if torch.version.hip else extensions.CUDA_HOME) is None:
        missing.append("the ROCm toolkit (ROCM_HOME)" if torch.version.hip else "the CUDA toolkit (nvcc, CUDA_HOME)")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        missing.append("a C++ compiler (CXX)")
    if not extensions.is_ninja_available():
        missing.append("ninja")
    if missing:
        raise EngineUnavailable(
            "exllamav2's compiled part, exllamav2_ext, is not installed, and cannot be compiled without "
            f"{' and '.join(missing)}. {_INSTALL_WHEEL} Or install what is missing: the first start then compiles it, "
            "for some minutes."
        )


def _check_flash_attention(torch: Any, *, paged: bool) -> None:
    """Paged attention is flash-attn's. Without it one that is broken is still an error: exllamav2 imports it."""
    if _NO_FLASH_ATTN in os.environ:
        if paged:
            raise EngineUnavailable(
                f"paged = true needs flash-attn, and {_NO_FLASH_ATTN} is set. Unset it, {_UNPAGED}."
            )
        return
    if not _is_there("flash_attn"):
        if paged:
            raise EngineUnavailable(
                "paged = true needs flash-attn 2.5.7 or later, and it is not installed. "
                f"Run: pip install flash-attn --no-build-isolation, {_UNPAGED}."
            )
        return
    try:
        version = str(importlib.import_module("flash_attn").__version__)
        importlib.import_module("flash_attn_2_cuda")
    except (ImportError, OSError) as error:
        raise EngineUnavailable(
            f"flash-attn is installed but cannot load: {_line(error)}. As a rule it was built for another version of "
            f"torch than {torch.__version__}. Install it again, or set {_NO_FLASH_ATTN}=1 and write paged = false and "
            "slots = 1."
        ) from error
    if not paged:
        return
    # As exllamav2 reads it.
    if [int(part) for part in version.split(".") if part.isdigit()] < _MIN_FLASH_ATTN:
        raise EngineUnavailable(
            f"paged = true needs flash-attn 2.5.7 or later, and {version} is installed. "
            f"Run: pip install --upgrade flash-attn --no-build-isolation, {_UNPAGED}."
        )
    older = _older_than_ampere(torch)
    if older:
        raise EngineUnavailable(
            f"paged = true needs GPUs of the Ampere generation or newer, and {', '.join(older)} is older. "
            f"Leave it out of devices, {_UNPAGED}."
        )


def _older_than_ampere(torch: Any) -> list[str]:
    if torch.version.hip:
        return []
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [each.name for each in properties if each.major < _AMPERE]


def _import_package() -> ModuleType:
    try:
        with stdout_in_log(log):
            package = importlib.import_module("exllamav2")
            importlib.import_module("exllamav2.generator")
    except Exception as error:
        raise EngineUnavailable(
            f"exllamav2 is installed but cannot be imported: {type(error).__name__}: {_line(error)}. {_INSTALL_WHEEL}"
        ) from error
    version = importlib.metadata.version("exllamav2")
    if version.partition("+")[0] != TESTED_VERSION:
        log.warning("exllamav2_untested version=%s tested=%s", version, TESTED_VERSION)
    return package


def _line(error: BaseException) -> str:
    """An error's text on one line, bounded: a failed compilation prints pages."""
    return " ".join(str(error).split())[:500]
