"""The alias that workers follow: a version that it names is put back if its deletion was begun and never ended."""

from __future__ import annotations

import pytest

from headpond.tables import VersionSource
from headpond_workers.checkpoints.alias_document import Trial
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.version_document import VersionState
from headpond_workers.rollover.alias_store import AliasStore
from memory_blobs import MemoryBlobs
from stored_versions import put_version

WHO = "the test"


@pytest.fixture
def registry() -> Registry:
    blobs = MemoryBlobs()
    for number in (1, 2, 3):
        put_version(blobs, "chat", {"scripted.json": b"{}"}, number=number)
    registry = Registry(blobs, "chat", writer=WHO)
    Aliases(registry).move("prod", to=1, left=None, who=WHO)
    Aliases(registry).begin_trial("prod", Trial(2, 100, 1), who=WHO)
    return registry


def store(registry: Registry) -> AliasStore:
    return AliasStore(VersionSource("chat", "prod"), registry, who=WHO)


def begin_to_delete(registry: Registry, number: int) -> None:
    registry.swap(registry.read(number), VersionState.DELETING)


@pytest.mark.parametrize("number", [1, 2])
def test_a_deletion_that_was_killed_is_undone_for_what_the_alias_names_or_tries(
    registry: Registry, number: int
) -> None:
    begin_to_delete(registry, number)
    assert store(registry).put_back(number)
    assert registry.complete(number).number == number


def test_a_deletion_of_another_version_goes_on(registry: Registry) -> None:
    begin_to_delete(registry, 3)
    assert not store(registry).put_back(3)
    assert registry.read(3).document.state is VersionState.DELETING


def test_a_version_that_is_quarantined_or_gone_is_not_put_back(registry: Registry) -> None:
    registry.quarantine(1, reason="a chunk is damaged")
    assert not store(registry).put_back(1)
    assert not AliasStore(
        VersionSource("talk", "prod"), Registry(registry.blobs, "talk", writer=WHO), who=WHO
    ).put_back(1)
