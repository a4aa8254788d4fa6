"""From `s3:chat@prod` to a number, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from headpond.errors import BlobCorrupt, ConfigError, VersionMissing
from headpond.settings import check_settings
from headpond.tables import VersionSource
from headpond_workers.checkpoints.names import alias_key
from headpond_workers.checkpoints.resolving import open_storage, resolve
from headpond_workers.checkpoints.version_document import VersionState
from memory_blobs import MemoryBlobs
from stored_versions import put_alias, put_version

FILES = {"scripted.json": b"{}"}


def test_an_alias_is_the_number_that_it_names_now() -> None:
    blobs = MemoryBlobs()
    for model, alias, number in (("chat", "prod", 3), ("chat", "next", 4), ("code", "prod", 1)):
        put_version(blobs, model, FILES, number=number)
        put_alias(blobs, model, alias, number)
    found = [resolve(VersionSource.parse(text), blobs) for text in ("s3:chat", "s3:chat@next", "s3:code@prod")]
    assert found == [3, 4, 1]


def test_a_deletion_that_was_killed_amid_keeps_nobody_from_what_an_alias_names() -> None:
    blobs = MemoryBlobs()
    version = put_version(blobs, "chat", FILES, number=3, state=VersionState.DELETING)
    put_alias(blobs, "chat", "prod", 3)
    assert resolve(VersionSource.parse("s3:chat"), blobs) == 3
    assert version.registry.complete(3).number == 3


def test_a_number_is_itself_and_nobody_is_asked() -> None:
    assert resolve(VersionSource.parse("s3:chat@12"), MemoryBlobs()) == 12


def test_an_alias_that_is_not_there_says_what_to_call() -> None:
    blobs = MemoryBlobs()
    with pytest.raises(VersionMissing) as missing:
        resolve(VersionSource.parse("s3:chat"), blobs)
    assert str(missing.value) == (
        "chat@prod: there is no such alias, and no version of it either. Push one: headpond models push chat PATH; "
        "then: headpond models promote chat 1 --alias prod"
    )
    put_version(blobs, "chat", FILES, number=1)
    put_version(blobs, "chat", FILES, number=2)
    with pytest.raises(VersionMissing, match=r"no such alias. Let it .*: headpond models promote chat 2 --alias next$"):
        resolve(VersionSource.parse("s3:chat@next"), blobs)
    put_alias(blobs, "chat", "next", 0, trial=2)
    with pytest.raises(VersionMissing, match=r"^chat@next: the alias names no version yet"):
        resolve(VersionSource.parse("s3:chat@next"), blobs)


def test_an_alias_under_the_key_of_another_is_damage() -> None:
    blobs = MemoryBlobs()
    put_alias(blobs, "chat", "prod", 3)
    blobs.objects[alias_key("code", "prod")] = blobs.objects[alias_key("chat", "prod")]
    with pytest.raises(BlobCorrupt, match="it is the alias chat@prod"):
        resolve(VersionSource.parse("s3:code"), blobs)


def test_without_storage_it_is_said_how_to_get_one(tmp_path: Path) -> None:
    settings = check_settings({"models": {}}, file=tmp_path / "headpond.toml")
    with pytest.raises(ConfigError, match=r"headpond\.toml: versions of models stand in object storage.*headpond up"):
        open_storage(settings)
    own = {"endpoint_url": "http://127.0.0.1:9", "access_key": {"env": "K"}}
    with pytest.raises(ConfigError, match="needs access_key and secret_key"):
        open_storage(check_settings({"models": {}, "storage": own}, file=tmp_path / "headpond.toml"))
