"""Where a model's weights come from: parsed, checked in tables of every engine, and nothing to prepare."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headpond.errors import ConfigError, EngineOutOfMemory, EngineUnavailable, InvalidRequest, ModelFileError
from headpond.sampling import Sampling
from headpond.settings import Settings, check_settings
from headpond.spec import spec_of
from headpond.tables import ScriptedModel, VersionedModel
from headpond.tables.version_source import VersionSource
from headpond_workers.cli.preparing import prepare_models
from headpond_workers.engines.protocol import Sequence, Verdict
from headpond_workers.engines.scripted import ScriptedEngine
from headpond_workers.engines.scripted_version import LoadFailure, read_scripted_version
from headpond_workers.loading import load_engine


def settings_of(folder: Path, table: dict[str, object]) -> Settings:
    return check_settings({"models": {"a": table}}, file=folder / "headpond.toml")


@pytest.mark.parametrize(
    ("text", "name", "alias", "number"),
    [
        ("s3:chat", "chat", "prod", None),
        ("s3:chat@prod", "chat", "prod", None),
        ("s3:chat@next-1", "chat", "next-1", None),
        ("s3:code-2.5@12", "code-2.5", None, 12),
        ("s3:chat@9999999999", "chat", None, 9_999_999_999),
    ],
)
def test_a_source_names_an_alias_or_a_number(text: str, name: str, alias: str | None, number: int | None) -> None:
    source = VersionSource.parse(text)
    assert (source.name, source.alias, source.number) == (name, alias, number)
    assert VersionSource.parse(str(source)) == source
    assert VersionSource.parse_version(source.version) == source


@pytest.mark.parametrize(
    "text",
    ["", "chat", "s3:", "s3:@3", "s3:Chat", "s3:chat@", "s3:chat@0", "s3:chat@03", "s3:chat@-1", "s3:chat@Prod",
     "s3:chat@3@4", "s3:chat@12345678901", "s3:chat@a_b", "s3:chat/../x@3", "s3:chat@3 ", "s4:chat"],
)  # fmt: skip
def test_what_names_no_version_is_refused_in_words(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"(s3:NAME@prod|cannot name a model|names no version)"):
        VersionSource.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        source = VersionSource.parse(f"s3:{text}")
    except InvalidRequest:
        return
    assert VersionSource.parse(str(source)) == source


@pytest.mark.parametrize("engine", ["llamacpp", "exllamav2", "exllamav3", "scripted"])
def test_every_engine_that_loads_weights_takes_a_version(tmp_path: Path, engine: str) -> None:
    table = settings_of(tmp_path, {"engine": engine, "source": "s3:chat@next", "rollover": "side-by-side"}).model("a")
    assert isinstance(table, VersionedModel)
    assert table.version_source == VersionSource("chat", "next")
    assert (table.rollover, table.path) == ("side-by-side", None)
    # What has been fetched stands in its place; what its name means is the source, on every host alike.
    loaded = table.loaded_from(tmp_path / "v3")
    assert (loaded.local_path, loaded.version_source) == (tmp_path / "v3", None)
    spec = json.loads(spec_of(table, storage=True, digest_of=str))
    assert spec["source"] == "s3:chat@next"
    assert "rollover" not in spec
    with pytest.raises(ConfigError, match=r"\[models\.a\] give path = .* neither|exactly one of them"):
        settings_of(tmp_path, {"engine": engine, "source": "s3:chat@next", "path": "x"})
    with pytest.raises(ConfigError, match=r"\[models\.a\] source: 'chat@' names no version"):
        settings_of(tmp_path, {"engine": engine, "source": "s3:chat@"})
    with pytest.raises(EngineUnavailable, match=r"s3:chat@next are not on this machine"):
        _ = table.local_path


@pytest.mark.parametrize("engine", ["exllamav2", "exllamav3", "scripted"])
def test_the_catalogue_is_llamacpps_alone(tmp_path: Path, engine: str) -> None:
    with pytest.raises(ConfigError, match=r"source: 'smollm2-135m:Q8_0' is no version in storage"):
        settings_of(tmp_path, {"engine": engine, "source": "smollm2-135m:Q8_0"})
    table = settings_of(tmp_path, {"engine": "llamacpp", "source": "smollm2-135m:Q8_0"}).model("a")
    assert table.version_source is None


def test_a_version_is_nothing_to_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADPOND_CACHE", str(tmp_path / "cache"))
    prepare_models(settings_of(tmp_path, {"engine": "llamacpp", "source": "s3:chat"}))
    assert not (tmp_path / "cache").exists()


def scripted_at(folder: Path, **keys: object) -> ScriptedModel:
    folder.mkdir(exist_ok=True)
    (folder / "scripted.json").write_text(json.dumps(keys))
    return ScriptedModel(engine="scripted", path=folder, tokens_per_s=1e5, answer_tokens=9)


def answer_of(table: ScriptedModel) -> tuple[str, list[int]]:
    """The engine's fingerprint, and what it says to one prompt."""
    engine = ScriptedEngine(table)
    ids: list[int] = []

    def emit(new: object) -> Verdict:
        ids.extend(new)  # type: ignore[call-overload]
        return Verdict.GO

    try:
        engine.generate(Sequence(tuple(engine.encode("hello")), (), 100, Sampling(), 1), emit)
        return engine.info.fingerprint, ids
    finally:
        engine.close()


def test_the_versions_of_the_scripted_engine_differ_by_their_files(tmp_path: Path) -> None:
    bare = answer_of(ScriptedModel(engine="scripted", tokens_per_s=1e5, answer_tokens=9))
    assert answer_of(scripted_at(tmp_path / "empty")) == bare
    longer = answer_of(scripted_at(tmp_path / "longer", answer_tokens=12, tokens_per_s=50000))
    assert longer[0] != bare[0]
    assert (len(longer[1]), longer[1][:9]) == (12, bare[1])
    salted = answer_of(scripted_at(tmp_path / "salted", salt="b"))
    assert salted[0] not in (bare[0], longer[0])
    assert salted[1][:4] != bare[1][:4]
    alone = ScriptedModel(
        engine="scripted", path=tmp_path / "salted" / "scripted.json", tokens_per_s=1e5, answer_tokens=9
    )
    assert answer_of(alone) == salted


@pytest.mark.parametrize(
    ("fail", "error"),
    [("load", EngineUnavailable), ("oom", EngineOutOfMemory), ("template", ModelFileError)],
)
def test_a_version_of_the_scripted_engine_may_fail_to_load(tmp_path: Path, fail: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"fail = {fail}"):
        load_engine(scripted_at(tmp_path / "v", fail=fail), workers_on_host=1)


def test_a_version_of_the_scripted_engine_may_kill_its_process(tmp_path: Path) -> None:
    scripted_at(tmp_path / "v", fail="crash")
    program = (
        "import sys; from pathlib import Path; from headpond.tables import ScriptedModel; "
        "from headpond_workers.engines.scripted import ScriptedEngine; "
        "ScriptedEngine(ScriptedModel(engine='scripted', path=Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "v")], env=os.environ, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"answer_token": 3}', "unknown key 'answer_token'"),
        ('{"answer_tokens": 0}', "answer_tokens is '0'"),
        ('{"answer_tokens": true}', "answer_tokens is 'True'"),
        ('{"tokens_per_s": 0}', "tokens_per_s is '0'"),
        ('{"tokens_per_s": NaN}', "tokens_per_s is 'nan'"),
        ('{"tokens_per_s": 1' + "0" * 400 + "}", "tokens_per_s is '1000"),
        ('{"salt": 3}', "salt is '3'"),
        ('{"salt": "\\ud800"}', "salt is"),
        ('{"fail": "always"}', "fail is 'always'"),
        ('{"fail": ["load"]}', "fail is"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_damaged_file_of_the_scripted_engine_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "scripted.json").write_text(text)
    with pytest.raises(ModelFileError) as refused:
        read_scripted_version(tmp_path)
    assert said in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_all_keys_of_the_scripted_engines_file_are_read(tmp_path: Path) -> None:
    scripted_at(tmp_path, answer_tokens=3, tokens_per_s=2, salt="x", fail="oom")
    version = read_scripted_version(tmp_path)
    assert (version.answer_tokens, version.tokens_per_s, version.salt) == (3, 2.0, "x")
    assert version.fail is LoadFailure.OUT_OF_MEMORY
    with pytest.raises(ModelFileError, match="No file at"):
        read_scripted_version(tmp_path / "nothing")
