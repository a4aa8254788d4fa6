"""What a name means: which keys of a table count, and how two specs are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from headpond.engine_kinds import EngineTable
from headpond.errors import MalformedDocument
from headpond.spec import differences, spec_of, summary
from headpond.tables import ENGINES, ExLlamaV2Model, LlamaCppModel, ModelTable, ScriptedModel, SecretRef
from headpond.tables.table import Table


class _Upstream(Table):
    token: SecretRef
    region: str = "eu"


class ThirdParty(EngineTable):
    """A table of another package: it says of one key that it is the host's own, and nothing of the others."""

    host_keys: ClassVar[frozenset[str]] = frozenset({"cache_folder"})

    engine: Literal["third"]
    model: str
    base_url: str = ""
    api_key: SecretRef | None = None
    keys: dict[str, SecretRef] = Field(default_factory=dict)
    headers: Annotated[dict[str, SecretRef | Annotated[str, Field(max_length=99)]], Field(max_length=3)] = Field(
        default_factory=dict
    )
    proxy: SecretRef | Annotated[str, Field(max_length=99)] | None = None
    upstream: _Upstream | None = None
    cache_folder: Path | None = None
    weights: Path | None = None
    temperature_limit: Annotated[float, Field(ge=0)] = 2.0

    def load_engine(self, *, workers_on_host: int) -> Any:
        raise NotImplementedError


def content_of(path: Path) -> str:
    return f"sha256:{path.name}"


def spec(table: ModelTable, *, storage: bool = True) -> dict[str, Any]:
    found = json.loads(spec_of(table, storage=storage, digest_of=content_of))
    assert isinstance(found, dict)
    return found


def test_a_path_stands_for_its_content_so_two_hosts_mean_the_same() -> None:
    here = LlamaCppModel(engine="llamacpp", path=Path("/data/a/model.gguf"), threads=2, workers=3, slots=1)
    there = LlamaCppModel(engine="llamacpp", path=Path("/other/model.gguf"), threads=8)
    assert spec(here) == spec(there)
    assert spec(here) == {
        "engine": "llamacpp", "context_tokens": 2048, "path": "sha256:model.gguf", "storage": True,
    }  # fmt: skip


def test_what_a_host_decides_for_itself_does_not_count() -> None:
    plain = ScriptedModel(engine="scripted")
    changed: dict[str, Any] = {
        "workers": 5, "slots": 9, "drain_timeout_s": 1.0, "stall_timeout_s": 9.0, "tokens_per_s": 5.0,
        "prefill_tokens_per_s": 7.0, "crash_at": "end", "crash_token": 3, "crash_prompt": "x",
        "rollover": "side-by-side",
    }  # fmt: skip
    assert set(changed) == ScriptedModel.all_host_keys()
    assert spec(ScriptedModel(engine="scripted", **changed)) == spec(plain)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("context_tokens", 512), ("answer_tokens", 9), ("lease_s", 3.0), ("retention_s", 60.0), ("max_queued", 7),
        ("stream_retention_s", 5.0), ("suspect_wait_s", 1.0), ("version_wait_s", 2.0), ("tenant_weights", {"a": 2.0}),
    ],
)  # fmt: skip
def test_what_decides_the_answer_or_the_queue_counts(key: str, value: object) -> None:
    changed = ScriptedModel.model_validate({"engine": "scripted", key: value})
    here = spec_of(ScriptedModel(engine="scripted"), storage=True, digest_of=content_of)
    there = spec_of(changed, storage=True, digest_of=content_of)
    assert [d.key.partition(".")[0] for d in differences(here, there)] == [key]


def test_storage_counts() -> None:
    table = ScriptedModel(engine="scripted")
    assert spec(table) != spec(table, storage=False)


def test_every_key_of_every_engine_is_the_hosts_own_or_counts() -> None:
    """A key that a release adds counts, unless its class says otherwise: forgetting one errs on the safe side."""
    for kind in ENGINES.values():
        assert kind.all_host_keys() <= kind.model_fields.keys(), kind
        assert kind.all_live_keys() <= kind.model_fields.keys(), kind
        assert {"engine", "context_tokens"}.isdisjoint(kind.all_host_keys())


def test_adapters_count_by_name_and_content() -> None:
    table = {"engine": "exllamav2", "path": "/m", "adapters": {"formal": {"path": "/x/formal", "scaling": 0.5}}}
    assert spec(ExLlamaV2Model.model_validate(table))["adapters"] == {
        "formal": {"path": "sha256:formal", "scaling": 0.5}
    }
    without = ExLlamaV2Model.model_validate({"engine": "exllamav2", "path": "/m", "draft": {"path": "/d"}})
    assert "adapters" not in spec(without)
    assert "draft" not in spec(without)  # it makes the same tokens sooner


def test_a_table_of_another_package_counts_but_for_what_it_names_and_what_is_secret() -> None:
    table = ThirdParty.model_validate(
        {
            "engine": "third", "model": "big", "base_url": "https://user:hunter2@example.org/v1",
            "api_key": {"env": "BIG_SECRET_NAME"}, "keys": {"a": {"file": "/run/secrets/place"}},
            "upstream": {"token": {"env": "TOKEN_NAME"}, "region": "us"}, "cache_folder": "/var/cache/x",
            "headers": {"X-Team": "plain-but-private"}, "proxy": "http://proxy.local:3128",
            "weights": "/w/weights.bin", "slots": 7,
        }
    )  # fmt: skip
    assert spec(table) == {
        "engine": "third", "context_tokens": 2048, "storage": True, "model": "big",
        "base_url": "https://example.org/v1", "upstream": {"region": "us"}, "weights": "sha256:weights.bin",
    }  # fmt: skip
    text = spec_of(table, storage=True, digest_of=content_of)
    for secret in (
        "hunter2",
        "BIG_SECRET_NAME",
        "/run/secrets/place",
        "TOKEN_NAME",
        "private",
        "proxy",
        "/var/cache/x",
    ):
        assert secret not in text


def test_differences_name_each_key_once_the_engine_first() -> None:
    here = spec_of(ScriptedModel(engine="scripted"), storage=True, digest_of=content_of)
    there = spec_of(
        LlamaCppModel(engine="llamacpp", source="smollm2-135m:Q8_0", tenant_weights={"acme": 3.0}),
        storage=False,
        digest_of=content_of,
    )
    assert [str(d) for d in differences(here, there)] == [
        'engine: "scripted" here, "llamacpp" there',
        "context_tokens: 8192 here, 2048 there",
        'source: (default) here, "smollm2-135m:Q8_0" there',
        "storage: true here, false there",
        "tenant_weights.acme: (default) here, 3.0 there",
    ]
    assert differences(here, here) == ()
    assert summary(there) == "llamacpp smollm2-135m:Q8_0 2048 tokens"


@pytest.mark.parametrize("text", ["", "[]", "{", "1", "[" * 100_000])
def test_a_spec_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(MalformedDocument):
        differences(text, "{}")
