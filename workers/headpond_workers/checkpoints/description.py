"""What is told of a version beside its files: which engine it is for, with which parameters, and which adapters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headpond.errors import InvalidRequest, ModelFileError
from headpond.spec import spec_of
from headpond.tables import ModelTable
from headpond_workers.checkpoints.manifest import MAX_PARAMETERS, AdapterNote
from headpond_workers.checkpoints.version_document import MAX_NOTE_CHARS
from headpond_workers.engines.formats.checkpoint_folder import check_adapter
from headpond_workers.engines.formats.model_files import read_json_object, unreadable
from headpond_workers.engines.formats.weights_digest import digest_of

MAX_CONFIG_BYTES = 1 << 24
MAX_VALUE_CHARS = 4096
"""Of one parameter, as the manifest has it."""
_WHERE_IT_IS = ("engine", "path", "source", "storage")
"""Keys of a spec that tell nothing of how a version is run."""
_EXLLAMAV2_METHODS = ("exl2", "gptq")


@dataclass(frozen=True, slots=True)
class Description:
    """parameters: of the engine, as text."""

    engine: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[AdapterNote, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidRequest."""
        if len(self.note) > MAX_NOTE_CHARS:
            raise InvalidRequest(
                f"the note has {len(self.note)} characters; at most {MAX_NOTE_CHARS} are kept", field="note"
            )


def describe(table: ModelTable | None, path: Path, *, engine: str | None, note: str, digests: Path) -> Description:
    """What the model's table says; without one, what the files look like. engine: told by whoever pushes.

    A table of another engine than the one that is told tells nothing of it. digests: a folder that remembers digests
    of adapters. Raises ModelFileError for an adapter that is refused, InvalidRequest for a note that is too long.
    """
    if table is None or (engine is not None and engine != table.engine):
        return Description(engine or engine_of_files(path), note=note)
    return Description(table.engine, parameters_of(table), adapters_of(table, digests), note)


def parameters_of(table: ModelTable) -> dict[str, str]:
    """What the table says of how the model is run, without what is a host's own, secret or a path."""
    spec = json.loads(spec_of(table, storage=True, digest_of=lambda path: path.name))
    shown = {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        for key, value in sorted(spec.items())
        if key not in _WHERE_IT_IS and key not in table.all_live_keys()
    }
    return {key: text[:MAX_VALUE_CHARS] for key, text in list(shown.items())[:MAX_PARAMETERS]}


def adapters_of(table: ModelTable, digests: Path) -> tuple[AdapterNote, ...]:
    """The adapters that a job of this model may name, with the digests of their weights."""
    named = getattr(table, "adapters", {})
    return tuple(AdapterNote(name, _adapter_digest(adapter.path, digests)) for name, adapter in sorted(named.items()))


def _adapter_digest(path: Path, digests: Path) -> str:
    if path.is_dir():
        return check_adapter(path, digest_cache=digests).digest
    try:
        return digest_of(path)
    except OSError as error:
        raise ModelFileError(f"Cannot read the adapter {path}: {error.strerror}. Correct its path.") from error


def engine_of_files(path: Path) -> str | None:
    """Which engine of this package loads such files; None if nothing tells."""
    if path.is_file():
        return "llamacpp" if path.suffix.lower() == ".gguf" else None
    names = _file_names(path)
    suffixes = {os.path.splitext(name)[1].lower() for name in names}
    if ".gguf" in suffixes:
        return "llamacpp"
    if "config.json" not in names or ".safetensors" not in suffixes:
        return None
    method = _quantisation(path / "config.json")
    if method == "exl3":
        return "exllamav3"
    return "exllamav2" if method is None or method in _EXLLAMAV2_METHODS else None


def _file_names(folder: Path) -> list[str]:
    try:
        return [each.name for each in folder.iterdir() if each.is_file()] if folder.is_dir() else []
    except OSError as error:
        raise unreadable(folder, error) from error


def _quantisation(config: Path) -> str | None:
    """How config.json says that the weights are quantised; None for not at all."""
    found = read_json_object(config, max_bytes=MAX_CONFIG_BYTES).get("quantization_config")
    return str(found.get("quant_method", ""))[:40] if isinstance(found, dict) else None
