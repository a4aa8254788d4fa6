"""What a version says beside its files comes from the model's table, else from the files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from headpond.errors import ModelFileError
from headpond.settings import load_settings
from headpond.tables import ModelTable
from headpond_workers.checkpoints.comparing import FileChange, ParameterChange, Shared, compare, shared
from headpond_workers.checkpoints.description import Description, describe
from headpond_workers.checkpoints.manifest import AdapterNote
from headpond_workers.checkpoints.pushes.pushing import push
from memory_blobs import MemoryBlobs
from pushed_versions import registry_on
from tiny_weights import gguf, noise, write_model

KIB = 1 << 10


def table_of(folder: Path, text: str) -> ModelTable:
    (folder / "headpond.toml").write_text(text)
    return load_settings(folder / "headpond.toml").model("chat")


@pytest.fixture
def table(tmp_path: Path) -> ModelTable:
    (tmp_path / "polite.gguf").write_bytes(gguf({"a": bytes(8)}))
    return table_of(
        tmp_path,
        """
[models.chat]
engine = "llamacpp"
path = "chat.gguf"
context_tokens = 8192
flash_attention = "on"
cache_type_k = "q8_0"
threads = 3
workers = 2
max_queued = 100
[models.chat.adapters.polite]
path = "polite.gguf"
scaling = 0.5
""",
    )


def test_the_table_says_how_a_model_is_run_without_what_is_a_hosts_own(table: ModelTable, tmp_path: Path) -> None:
    found = describe(table, tmp_path / "chat.gguf", engine=None, note="third", digests=tmp_path / "digests")
    digest = hashlib.sha256((tmp_path / "polite.gguf").read_bytes()).hexdigest()
    assert found == Description(
        engine="llamacpp",
        parameters={
            "adapters": '{"polite": {"path": "polite.gguf", "scaling": 0.5}}',
            "cache_type_k": "q8_0",
            "context_tokens": "8192",
            "flash_attention": "on",
        },
        adapters=(AdapterNote("polite", digest),),
        note="third",
    )


def test_a_table_of_another_engine_than_is_told_says_nothing(table: ModelTable, tmp_path: Path) -> None:
    found = describe(table, tmp_path / "chat.gguf", engine="exllamav2", note="", digests=tmp_path / "digests")
    assert found == Description(engine="exllamav2")


def test_without_a_table_the_files_tell_the_engine(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"a": b"x"})
    assert describe(None, model, engine=None, note="", digests=tmp_path) == Description(engine="exllamav2")


def test_an_adapter_that_is_not_there_is_refused(table: ModelTable, tmp_path: Path) -> None:
    (tmp_path / "polite.gguf").unlink()
    with pytest.raises(ModelFileError, match="polite"):
        describe(table, tmp_path / "chat.gguf", engine=None, note="", digests=tmp_path / "digests")


def test_nothing_secret_is_noted(tmp_path: Path) -> None:
    table = table_of(
        tmp_path,
        """
[models.chat]
engine = "openai"
base_url = "http://127.0.0.1:9/v1"
upstream_model = "m"
api_key = {env = "KEY"}
[models.chat.headers]
X-Team = "told-to-nobody"
""",
    )
    found = describe(table, tmp_path, engine=None, note="", digests=tmp_path)
    assert "told-to-nobody" not in str(found)
    assert "KEY" not in str(found)
    assert found.parameters["upstream_model"] == "m"


def test_two_versions_are_compared_by_file_chunk_and_parameter(tmp_path: Path) -> None:
    registry = registry_on(MemoryBlobs())
    tensors = {name: noise(number, 10 * KIB) for number, name in enumerate("abcd")}
    model = write_model(tmp_path / "model", tensors)
    (model / "old.json").write_text("[1]")
    first = push(registry, model, Description("exllamav2", {"cache": "FP16", "rope": "1"}))
    write_model(model, tensors | {"b": noise(9, 10 * KIB)})
    (model / "old.json").rename(model / "new.json")
    second = push(registry, model, Description("exllamav2", {"cache": "Q4"}, (AdapterNote("polite", "ab"),)))
    before, after = (registry.manifest_of(each.document) for each in (first, second))
    found = compare(before, after)
    size = (model / "model.safetensors").stat().st_size
    assert found.files == (
        FileChange("model.safetensors", size, size, 10 * KIB),
        FileChange("new.json", None, 3, 0),
        FileChange("old.json", 3, None, 0),
    )
    assert [change.kind for change in found.files] == ["changed", "added", "removed"]
    assert found.parameters == (
        ParameterChange("adapter polite", None, "ab"),
        ParameterChange("cache", "FP16", "Q4"),
        ParameterChange("rope", "1", None),
    )
    whole = second.document.size_bytes
    assert found.new == shared(after, before) == Shared(whole, whole - 10 * KIB)
    assert compare(after, after).files == compare(after, after).parameters == ()
