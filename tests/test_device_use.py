"""What an engine says that it takes of its device."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from headpond.tables import ScriptedModel
from headpond_workers.engines.exllama.cuda_use import cuda_use
from headpond_workers.engines.protocol import DeviceUse
from headpond_workers.engines.scripted import ScriptedEngine
from headpond_workers.loading import device_use_of, renew_secrets_of


def torch_with(*reserved: int) -> SimpleNamespace:
    """The part of torch that is asked, for devices that have reserved so many bytes."""
    cuda = SimpleNamespace(
        is_available=lambda: bool(reserved),
        device_count=lambda: len(reserved),
        memory_reserved=lambda index: reserved[index],
    )
    return SimpleNamespace(cuda=cuda)


def test_memory_of_all_visible_devices_counts_under_the_numbers_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with(3 << 30, 4 << 30))
    assert cuda_use((2, 5)) == DeviceUse("cuda:2,5", 7 << 30)
    assert cuda_use(None) == DeviceUse("cuda:0,1", 7 << 30)
    monkeypatch.setitem(sys.modules, "torch", torch_with())
    assert cuda_use(None) == DeviceUse("cpu", 0)


def test_an_engine_may_leave_out_what_it_takes_and_its_secrets() -> None:
    engine = ScriptedEngine(ScriptedModel(engine="scripted"))
    try:
        assert device_use_of(engine) == DeviceUse("cpu")
        assert not hasattr(engine, "renew_secrets")
        renew_secrets_of(engine, ScriptedModel(engine="scripted"), where="[models.x]")
    finally:
        engine.close()
    assert device_use_of(object()) == DeviceUse()
