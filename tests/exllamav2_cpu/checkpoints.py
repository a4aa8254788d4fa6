"""Checkpoints for tests: Hugging Face folders, made once and kept under build/test-models.

A folder is named after the scripts and inputs that make it, so that a changed script makes another one. It appears
under its name complete or not at all; the one process that makes it holds a lock, which ends with the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exllamav2_cpu.processes import environment, run_python

HERE = Path(__file__).parent
MODELS = HERE.parent.parent / "build" / "test-models"
SMOLLM2_SOURCE = "smollm2-135m:Q8_0"


def tiny() -> Path:
    """Two layers, a vocabulary of about 350; trained on `tiny_corpus` until it knows it by heart. Makes it in 20 s."""
    return made("tiny", "tiny_checkpoint", sources=("tiny_checkpoint.py", "tiny_corpus.py"))


def tiny_adapter(seed: int = 0) -> Path:
    """A PEFT LoRA for `tiny` with random weights, strong enough to change its greedy answers."""
    arguments = (str(tiny()), str(seed))
    return made(f"tiny-adapter-{seed}", "tiny_adapter", sources=("tiny_adapter.py",), arguments=arguments)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: the weights, the vocabulary and the template of the GGUF file that llama.cpp serves."""
    # Not at the top: the other checkpoints need nothing of llama.cpp.
    from headpond_workers.engines.formats.weights_digest import digest_of
    from headpond_workers.models.prepare import prepare

    gguf = prepare(SMOLLM2_SOURCE, progress=lambda stage, done, total: None)
    return made(
        "smollm2-135m-q8",
        "smollm2_checkpoint",
        sources=("smollm2_checkpoint.py",),
        arguments=(str(gguf),),
        key=digest_of(gguf),
    )


def made(name: str, module: str, *, sources: Sequence[str], arguments: Sequence[str] = (), key: str = "") -> Path:
    """The folder that `python -m exllamav2_cpu.MODULE FOLDER ARGUMENTS` fills. key: what else decides its content."""
    digest = hashlib.sha256(key.encode())
    for source in sources:
        digest.update((HERE / source).read_bytes())
    for argument in arguments:
        # Of a path its name: the folder of a checkout does not decide what is made.
        digest.update(Path(argument).name.encode() + b"\0")
    folder = MODELS / f"{name}-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    MODELS.mkdir(parents=True, exist_ok=True)
    with _lock(MODELS / f".{name}.lock"):
        if folder.is_dir():
            return folder
        prefix = f".{name}.partial-"
        for left_over in MODELS.glob(f"{prefix}*"):
            # Best effort: the script of a killed process may still be writing there.
            shutil.rmtree(left_over, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=MODELS))
        run_python(
            ["-m", f"exllamav2_cpu.{module}", str(partial), *arguments], env=environment(CUDA_VISIBLE_DEVICES="")
        )
        partial.chmod(0o755)
        partial.rename(folder)
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
