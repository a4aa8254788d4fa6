"""What of a deployment's environment reaches which process: tried with real processes, through supervisord's files."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from headpond.settings import Settings, check_settings
from headpond.tables import NO_SECRETS, ModelTable, SecretRef, secret_references
from headpond_workers.supervision import programs
from headpond_workers.supervision.launcher import ALWAYS_ALLOWED, is_always_allowed
from headpond_workers.supervision.programs import Program, secret_variables
from test_supervision import parsed_by_supervisord

SHOW = (sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))")
SCRIPTED = {"engine": "scripted"}


def environment_of(folder: Path, program: Program, environment: dict[str, str]) -> dict[str, str]:
    """What the program sees if supervisord, with this environment, starts what its file says."""
    (folder / "starts").mkdir(exist_ok=True)
    config = parsed_by_supervisord(folder, replace(program, argv=SHOW))[program.name]
    needed = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    ended = subprocess.run(
        shlex.split(config.command), cwd=folder, env={**needed, **environment, **config.environment},
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    found: dict[str, str] = json.loads(ended.stdout)
    return found


def settings_with(folder: Path, **tables: object) -> Settings:
    models = {"chat": SCRIPTED, "code-2.5": SCRIPTED}
    return check_settings({"models": models, **tables}, file=folder / "headpond.toml")


def test_settings_for_all_reach_all_and_those_of_one_model_reach_that_one(tmp_path: Path) -> None:
    settings = settings_with(tmp_path)
    environment = {
        "HEADPOND_DEFAULTS__SLOTS": "8",
        "HEADPOND_REDIS__URL": "redis://h",
        "HEADPOND_MODELS__CHAT__SLOTS": "1",
        "HEADPOND_MODELS__CODE_2_5__SLOTS": "2",
    }
    of_all = {"HEADPOND_DEFAULTS__SLOTS", "HEADPOND_REDIS__URL"}
    for program, own in (
        (programs.worker(settings, "chat", 0), {"HEADPOND_MODELS__CHAT__SLOTS"}),
        (programs.worker(settings, "code-2.5", 0), {"HEADPOND_MODELS__CODE_2_5__SLOTS"}),
        (programs.persister(settings), set()),
    ):
        seen = environment_of(tmp_path, program, environment)
        assert {name for name in seen if "__" in name and name.startswith("HEADPOND_")} == of_all | own


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "openai_api_key", "OpenAI_Org_ID", "HTTP_PROXY", "https_proxy", "All_Proxy", "CUDA_PROXY",
     "HEADPOND_HTTP_PROXY", "XDG_PROXY", "LC_PROXY", "AWS_SECRET_ACCESS_KEY", "No_Proxy"],
)  # fmt: skip
def test_keys_and_proxies_of_the_shell_reach_no_process_of_ours(tmp_path: Path, name: str) -> None:
    settings = settings_with(tmp_path)
    valkey = programs.server(programs.VALKEY, ["v"])
    for program in (programs.worker(settings, "chat", 0), programs.persister(settings), valkey):
        assert name not in environment_of(tmp_path, program, {name: "http://user:password@host"})


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HTTPS_PROXY"])
def test_a_table_may_name_one_for_itself(tmp_path: Path, name: str) -> None:
    settings = settings_with(tmp_path, redis={"url": "redis://h", "password": {"env": name}})
    assert environment_of(tmp_path, programs.worker(settings, "chat", 0), {name: "x"})[name] == "x"


def test_a_secret_of_another_table_is_dropped_whatever_its_name(tmp_path: Path) -> None:
    storage = {"access_key": {"env": "CUDA_SECRET"}, "secret_key": {"env": "HEADPOND_S3"}}
    redis = {"url": "redis://h", "password": {"env": "HEADPOND_REDIS_PW"}}
    settings = settings_with(tmp_path, storage=storage, redis=redis)
    environment = {"CUDA_SECRET": "a", "HEADPOND_S3": "b", "HEADPOND_REDIS_PW": "c", "HEADPOND_CACHE": "/c"}
    worker = environment_of(tmp_path, programs.worker(settings, "chat", 0), environment)
    assert environment.keys() & worker.keys() == {"HEADPOND_REDIS_PW", "HEADPOND_CACHE"}
    persister = environment_of(tmp_path, programs.persister(settings), environment)
    assert environment.keys() & persister.keys() == environment.keys()
    # A server needs nothing of all that.
    server = environment_of(tmp_path, programs.server(programs.SEAWEED, ["w"]), environment)
    assert environment.keys() & server.keys() == set()


class _KeyedModel(ModelTable):
    api_key: SecretRef
    headers: dict[str, SecretRef]


def test_a_model_sees_its_own_keys_and_not_those_of_its_neighbour(tmp_path: Path) -> None:
    def model(key: str, header: str) -> _KeyedModel:
        return _KeyedModel(engine="keyed", api_key=SecretRef(env=key), headers={"X": SecretRef(env=header)})

    models = {"a": model("HEADPOND_KEY_A", "CUDA_SECRET_A"), "b": model("HEADPOND_KEY_B", "OPENAI_KEY_B")}
    settings = settings_with(tmp_path).model_copy(update={"models": models})
    names = ("HEADPOND_KEY_A", "CUDA_SECRET_A", "HEADPOND_KEY_B", "OPENAI_KEY_B")
    environment = {name: f"value of {name}" for name in names}
    for model_name, own in (("a", names[:2]), ("b", names[2:])):
        seen = environment_of(tmp_path, programs.worker(settings, model_name, 0), environment)
        assert {name for name in seen if name in environment} == set(own)
    assert not environment.keys() & environment_of(tmp_path, programs.persister(settings), environment).keys()


def test_a_secret_that_two_tables_name_reaches_both(tmp_path: Path) -> None:
    both = {"env": "HEADPOND_BOTH"}
    storage = {"access_key": both, "secret_key": {"env": "OTHER"}}
    settings = settings_with(tmp_path, storage=storage, redis={"url": "redis://h", "password": both})
    assert programs.worker(settings, "chat", 0).deny == ()
    assert "HEADPOND_BOTH" in environment_of(tmp_path, programs.worker(settings, "chat", 0), {"HEADPOND_BOTH": "x"})


def test_the_keys_of_storage_reach_workers_that_pull_versions_and_no_others(tmp_path: Path) -> None:
    storage = {"access_key": {"env": "S3_ACCESS"}, "secret_key": {"env": "HEADPOND_S3_SECRET"}}
    versions = {"engine": "scripted", "source": "s3:chat@prod"}
    catalogued = {"engine": "llamacpp", "source": "smollm2-135m:Q8_0"}
    models = {"chat": versions, "pinned": versions | {"source": "s3:chat@3"}, "plain": SCRIPTED, "file": catalogued}
    settings = check_settings({"models": models, "storage": storage}, file=tmp_path / "headpond.toml")
    environment = {"S3_ACCESS": "a", "HEADPOND_S3_SECRET": "b"}
    for model, own in (("chat", True), ("pinned", True), ("plain", False), ("file", False)):
        seen = environment_of(tmp_path, programs.worker(settings, model, 0), environment)
        assert (environment.keys() & seen.keys() == environment.keys()) is own, model
        assert own or not environment.keys() & seen.keys(), model


def test_a_secret_that_no_pattern_lets_through_changes_no_other_program(tmp_path: Path) -> None:
    before = programs.render(programs.worker(settings_with(tmp_path), "chat", 0))
    denied = programs.worker(settings_with(tmp_path, storage={"access_key": {"env": "S3_KEY"}}), "chat", 0)
    assert denied.deny == ()
    assert "S3_KEY" not in programs.render(denied)
    assert before.split("environment=")[0] == programs.render(denied).split("environment=")[0]


class _Deep(BaseModel):
    headers: dict[str, str | SecretRef]
    nested: tuple[dict[str, SecretRef], ...]
    one: Annotated[SecretRef | None, Field()] = None


def test_secret_references_are_found_at_any_depth() -> None:
    table = _Deep.model_validate(
        {
            "headers": {"X": {"env": "KEY_A"}, "Y": "plain", "Z": {"file": "/z"}},
            "nested": [{"a": {"env": "KEY_B"}}, {"b": {"env": "KEY_A"}}],
            "one": {"env": "KEY_C"},
        }
    )
    assert secret_variables(table) == ["KEY_A", "KEY_B", "KEY_C"]
    paths = [".".join(path) for path, _ in secret_references(table)]
    assert paths == ["headers.X", "headers.Z", "nested.0.a", "nested.1.b", "one"]


def test_a_name_that_every_process_needs_cannot_be_a_secret() -> None:
    exact = {name for name in ALWAYS_ALLOWED if "*" not in name}
    assert exact <= NO_SECRETS
    assert not is_always_allowed("HEADPOND_MODELS__CHAT__SLOTS")
