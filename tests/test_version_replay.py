"""A replay of a job of a model whose source is a version: the version that made its tokens is the one to load."""

from __future__ import annotations

from pathlib import Path

import pytest

from headpond.errors import StorageUnavailable, VersionMissing
from headpond.settings import Settings, check_settings
from headpond.tables import ScriptedModel
from headpond_workers.loading import load_engine
from headpond_workers.redaction import Secrets
from headpond_workers.replay import version_here
from headpond_workers.replay.version_here import table_here
from headpond_workers.storage.blobs import MAX_BLOB_BYTES, Blob
from memory_blobs import MemoryBlobs
from stored_versions import put_alias, put_version


class AbsentBlobs(MemoryBlobs):
    """Storage that can go away."""

    away = False

    def get(self, key: str, *, max_bytes: int = MAX_BLOB_BYTES) -> Blob:
        if self.away:
            raise StorageUnavailable("http://memory", configured_in="the test", reason="it is away")
        return super().get(key, max_bytes=max_bytes)


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AbsentBlobs:
    blobs = AbsentBlobs()
    monkeypatch.setenv("HEADPOND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(version_here, "open_storage", lambda settings, learn: blobs)
    put_version(blobs, "w", {"scripted.json": b'{"salt": "one"}'}, number=1)
    put_version(blobs, "w", {"scripted.json": b'{"salt": "two"}'}, number=2)
    put_alias(blobs, "w", "prod", 2)
    return blobs


def settings_with(folder: Path, source: str) -> Settings:
    return check_settings({"models": {"chat": {"engine": "scripted", "source": source}}}, file=folder / "headpond.toml")


def number_for(settings: Settings, version: str) -> int:
    table, held = table_here(settings, "chat", version, Secrets())
    assert isinstance(table, ScriptedModel)
    assert held is not None
    with held:
        engine = load_engine(table, workers_on_host=1)
        engine.close()
        assert table.local_path == held.path
        return held.document.number


@pytest.mark.parametrize(
    ("source", "version", "number"),
    [("s3:w", "1", 1), ("s3:w", "2", 2), ("s3:w", "", 2), ("s3:w", "local-0123456789ab", 2), ("s3:w@1", "2", 1)],
)
def test_the_version_that_made_the_tokens_is_loaded(
    blobs: AbsentBlobs, tmp_path: Path, source: str, version: str, number: int
) -> None:
    assert number_for(settings_with(tmp_path, source), version) == number


def test_a_version_that_is_on_this_machine_is_loaded_while_storage_is_away(blobs: AbsentBlobs, tmp_path: Path) -> None:
    settings = settings_with(tmp_path, "s3:w")
    assert number_for(settings, "1") == 1
    blobs.away = True
    assert number_for(settings, "1") == 1
    for version in ("2", ""):
        with pytest.raises(StorageUnavailable):
            table_here(settings, "chat", version, Secrets())


def test_a_version_that_is_gone_is_told(blobs: AbsentBlobs, tmp_path: Path) -> None:
    with pytest.raises(VersionMissing, match="w@7: there is no such version"):
        table_here(settings_with(tmp_path, "s3:w"), "chat", "7", Secrets())


def test_a_model_from_elsewhere_is_left_as_it_is(tmp_path: Path) -> None:
    settings = check_settings({"models": {"chat": {"engine": "scripted"}}}, file=tmp_path / "headpond.toml")
    assert table_here(settings, "chat", "1", Secrets()) == (settings.model("chat"), None)
