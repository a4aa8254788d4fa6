"""Layers of the configuration: which one counts, where each value was said, and what is refused in which layer."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.config_check import all_problems
from headpond.config_files import ConfigFiles, add_tables
from headpond.connections import find_redis
from headpond.errors import ConfigError
from headpond.origins import BUILT_IN, Layer
from headpond.settings import Settings, assemble, examine, load_settings
from headpond.tables import ExLlamaV2Model, LlamaCppModel, SecretRef
from headpond.toml_places import dotted
from headpond.up_file import MAX_BYTES, Told

SCRIPTED = '[models.chat]\nengine = "scripted"\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "headpond.toml"


def load(config: Path, text: str, *, variables: Mapping[str, str] | None = None, said: Sequence[str] = ()) -> Settings:
    config.write_text(text, encoding="utf-8")
    return load_settings(config, environment=variables or {}, command_line=said)


def refusal(config: Path, text: str, **layers: object) -> tuple[str, str]:
    """Where the mistake is said to be, and what it is."""
    with pytest.raises(ConfigError) as refused:
        load(config, text, **layers)  # type: ignore[arg-type]
    where = refused.value.where
    return where, str(refused.value).removeprefix(f"{where}: ")


def test_a_stronger_layer_beats_a_weaker_one(config: Path) -> None:
    """The layers are taken away one after the other: each time the next one shows."""
    variables = {"HEADPOND_DEFAULTS__SLOTS": "11", "HEADPOND_MODELS__CHAT__SLOTS": "14"}
    said = ["chat.slots=15", "defaults.slots=12"]
    whole = f"[defaults]\nslots = 10\n{SCRIPTED}slots = 13\n"

    def slots(text: str, names: Sequence[str] = (), said: Sequence[str] = ()) -> tuple[int, str]:
        found = load(config, text, variables={name: variables[name] for name in names}, said=said)
        return found.model("chat").slots, found.origins["models.chat.slots"].shown(config.parent)

    both = list(variables)
    assert slots(whole, both, said) == (15, "--set")
    assert slots(whole, both, said[1:]) == (14, "HEADPOND_MODELS__CHAT__SLOTS")
    assert slots(whole, both[:1], said[1:]) == (13, "headpond.toml:5")
    without_own = f"[defaults]\nslots = 10\n{SCRIPTED}"
    assert slots(without_own, both[:1], said[1:]) == (12, "--set [defaults]")
    assert slots(without_own, both[:1]) == (10, "headpond.toml:2 [defaults]")
    assert slots(SCRIPTED, both[:1]) == (11, "HEADPOND_DEFAULTS__SLOTS")
    assert slots(SCRIPTED) == (4, "built-in")


def test_every_value_has_an_origin(config: Path) -> None:
    found = load(
        config,
        '[redis]\nurl = "redis://h"\npassword = {env = "PW"}\n[models."a.b"]\nengine = "scripted"\n'
        "tenant_weights = {}\n",
        variables={"HEADPOND_MODELS__A_B__TENANT_WEIGHTS__ACME": "3"},
    )
    origins = found.origins
    assert origins["redis.url"].place == f"{config}:2"
    assert origins["redis.password"].line == 3
    assert origins["storage.bucket"] is BUILT_IN
    assert origins['models."a.b".engine'].line == 5
    assert origins['models."a.b".tenant_weights.acme'].layer is Layer.ENVIRONMENT
    fields = {f'models."a.b".{name}' for name in type(found.model("a.b")).model_fields} - {
        'models."a.b".tenant_weights'
    }
    assert fields < set(origins)


def test_origins_are_no_part_of_what_is_compared(config: Path) -> None:
    by_file = load(config, SCRIPTED + "slots = 7\n")
    by_variable = load(config, SCRIPTED, variables={"HEADPOND_MODELS__CHAT__SLOTS": "7"})
    assert by_file.model("chat").model_dump() == by_variable.model("chat").model_dump()
    assert by_file.model_dump() == by_variable.model_dump()
    assert by_file.origins != by_variable.origins


def test_a_variable_below_a_table_touches_its_key_alone(config: Path) -> None:
    found = load(
        config,
        SCRIPTED + 'tenant_weights = {acme = 1, "b.c-d" = 2}\n',
        variables={
            "HEADPOND_MODELS__CHAT__TENANT_WEIGHTS__ACME": "3",
            "HEADPOND_MODELS__CHAT__TENANT_WEIGHTS__B_C_D": "4.5",
            "HEADPOND_MODELS__CHAT__TENANT_WEIGHTS__NEW": "6",
        },
        said=['chat.tenant_weights."E.f"=7'],
    )
    assert found.model("chat").tenant_weights == {"acme": 3, "b.c-d": 4.5, "new": 6, "E.f": 7}


def test_two_keys_that_a_variable_cannot_tell_apart_are_refused(config: Path) -> None:
    where, message = refusal(
        config,
        SCRIPTED + "tenant_weights = {a-b = 1, a_b = 2}\n",
        variables={"HEADPOND_MODELS__CHAT__TENANT_WEIGHTS__A_B": "3"},
    )
    assert where == "HEADPOND_MODELS__CHAT__TENANT_WEIGHTS__A_B"
    assert "'a-b' and 'a_b'" in message


def test_a_table_in_a_file_replaces_the_weaker_one_whole(config: Path) -> None:
    text = f"[defaults]\ntenant_weights = {{acme = 3}}\n{SCRIPTED}tenant_weights = {{other = 2}}\n"
    assert load(config, text).model("chat").tenant_weights == {"other": 2}


@pytest.mark.parametrize(
    ("name", "key"),
    [("chat-v2.5", "CHAT_V2_5"), ("a_b", "A_B"), ("a__b", "A__B"), ("x", "X")],
)
def test_a_variable_names_a_model_in_capitals(config: Path, name: str, key: str) -> None:
    found = load(config, f'[models."{name}"]\nengine = "scripted"\n', variables={f"HEADPOND_MODELS__{key}__SLOTS": "9"})
    assert found.model(name).slots == 9


@pytest.mark.parametrize(("one", "other", "key"), [("a-b", "a_b", "A_B"), ("a.b", "a-b", "A_B"), ("a", "a__b", "A__B")])
def test_two_models_that_a_variable_cannot_tell_apart_are_refused_once_it_is_set(
    config: Path, one: str, other: str, key: str
) -> None:
    text = f'[models."{one}"]\nengine = "scripted"\n[models."{other}"]\nengine = "scripted"\n'
    assert set(load(config, text).models) == {one, other}
    where, message = refusal(config, text, variables={f"HEADPOND_MODELS__{key}__SLOTS": "9"})
    assert where == f"HEADPOND_MODELS__{key}__SLOTS"
    assert f"'{min(one, other)}' and '{max(one, other)}'" in message


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HEADPOND_DEFAULTS__SLOT", "1", "unknown key 'slot' in [defaults]; did you mean 'slots'?"),
        ("HEADPOND_DEFALTS__SLOTS", "1", "sets nothing; did you mean 'DEFAULTS'?"),
        ("HEADPOND_XYZ__SLOTS", "1", "sets nothing."),
        ("HEADPOND_MODELS__CHAT__SLOT", "1", "unknown key 'slot' in [models.chat]; did you mean 'slots'?"),
        (
            "HEADPOND_MODELS__CHTA__SLOTS",
            "1",
            "is for a model that the configuration does not have; did you mean",
        ),
        ("HEADPOND_MODELS__CHAT__", "1", "names no key"),
        ("HEADPOND_MODELS__CHAT__SLOTS__X", "1", "[models.chat] slots is no table"),
        ("HEADPOND_MODELS__CHAT__SLOTS", "four", "[models.chat] slots: is no TOML value; it must be an integer"),
        ("HEADPOND_MODELS__CHAT__SLOTS", "'4'", "[models.chat] slots: it must be an integer, not a string"),
        ("HEADPOND_MODELS__CHAT__SLOTS", "true", "[models.chat] slots: it must be an integer, not true or false"),
        ("HEADPOND_MODELS__CHAT__SLOTS", "4\nlease_s = 3", "[models.chat] slots: is no TOML value"),
        ("HEADPOND_MODELS__CHAT__SLOTS", "", "[models.chat] slots: is no TOML value"),
        (
            "HEADPOND_MODELS__CHAT__SLOTS",
            "[" * 5000,
            "[models.chat] slots: tables or lists stand in one another more than",
        ),
        ("HEADPOND_MODELS__CHAT__SLOTS", "0", "[models.chat] slots: must be 1 or more"),
        ("HEADPOND_DEFAULTS__SLOTS", "0", "[models.chat] slots: must be 1 or more"),
        ("HEADPOND_DEFAULTS__ENGINE", "scriptd", "[models.bare] engine = 'scriptd': no such engine; did you mean"),
        ("HEADPOND_DEFAULTS__slots", "1", "is not in capitals; write HEADPOND_DEFAULTS__SLOTS"),
        ("HEADPOND_REDIS__URI", "x", "unknown key 'uri' in [redis]; did you mean 'url'?"),
        ("HEADPOND_STORAGE__BUCKET", "A", "[storage] bucket: "),
    ],
)
def test_a_variable_that_cannot_be_is_refused_by_its_name(config: Path, variable: str, value: str, said: str) -> None:
    bare = "[models.bare]\nanswer_tokens = 3\n" if "ENGINE" in variable else ""
    where, message = refusal(config, SCRIPTED + bare, variables={variable: value})
    assert where == variable
    assert message.startswith(said)


@pytest.mark.parametrize(
    ("word", "where", "said"),
    [
        ("chat.slot=1", "--set chat.slot", "unknown key 'slot' in [models.chat]; did you mean 'slots'?"),
        ("chta.slots=1", "--set", "'chta' is neither a model nor a table; did you mean 'chat'?"),
        ("chat=1", "--set", "'chat' names no key of that table, such as chat.slots=8"),
        ("chat.slots", "--set", "takes KEY=VALUE, such as --set chat.slots=8"),
        ("=8", "--set", "takes KEY=VALUE"),
        ("", "--set", "takes KEY=VALUE"),
        ("models=1", "--set", "'models' is neither"),
        ("chat.slots=x", "--set chat.slots", "[models.chat] slots: is no TOML value; it must be an integer"),
        ("defaults.slot=1", "--set defaults.slot", "unknown key 'slot' in [defaults]"),
        ("storage.bucket=A", "--set storage.bucket", "[storage] bucket: "),
        ("chat.engine=scriptd", "--set chat.engine", "[models.chat] engine = 'scriptd': no such engine"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_key(config: Path, word: str, where: str, said: str) -> None:
    found, message = refusal(config, SCRIPTED, said=[word])
    assert found == where
    assert message.startswith(said)


@pytest.mark.parametrize(
    ("word", "name"),
    [("chat.slots=3", "chat"), ("models.chat.slots = 3", "chat"), ("a.b.slots=3", "a.b"), ('"a.b".slots=3', "a.b"),
     ("models.redis.slots=3", "redis"), ("defaults.slots=3", "chat")],
)  # fmt: skip
def test_an_option_names_a_model_as_a_file_does(config: Path, word: str, name: str) -> None:
    text = "".join(f'[models."{each}"]\nengine = "scripted"\n' for each in ("chat", "a.b", "redis", "a"))
    assert load(config, text, said=[word]).model(name).slots == 3


def test_of_two_options_on_one_key_the_last_one_counts(config: Path) -> None:
    assert load(config, SCRIPTED, said=["chat.slots=3", "chat.slots=5"]).model("chat").slots == 5


@pytest.mark.parametrize(
    ("value", "bucket"),
    [("plain-name", "plain-name"), ("'quoted'", "quoted"), ('"2026"', "2026"), ("2026", "2026"), ("true", "true")],
)
def test_a_string_needs_no_quotes(config: Path, value: str, bucket: str) -> None:
    assert load(config, "", variables={"HEADPOND_STORAGE__BUCKET": value}).storage.bucket == bucket
    assert load(config, "", said=[f"storage.bucket={value}"]).storage.bucket == bucket


def test_tables_of_servers_have_the_layers_too(config: Path) -> None:
    found = load(
        config,
        '[redis]\nurl = "redis://file"\npassword = {file = "pw"}\n[storage]\nregion = "eu-1"\n',
        variables={
            "HEADPOND_REDIS__URL": "redis://variable:6379/1",
            "HEADPOND_REDIS__PASSWORD__ENV": "OTHER_PW",
            "HEADPOND_STORAGE__ACCESS_KEY": '{env = "S3_KEY"}',
        },
        said=["storage.region=eu-2"],
    )
    assert found.redis.url == "redis://variable:6379/1"
    # A reference is one value: a variable's word on `env` leaves nothing of the file's `file`.
    assert found.redis.password == SecretRef(env="OTHER_PW")
    assert found.storage.access_key == SecretRef(env="S3_KEY")
    assert found.storage.region == "eu-2"


@pytest.mark.parametrize(
    "layer", [{"variables": {"HEADPOND_REDIS__PASSWORD": "hunter2-value"}}, {"said": ["redis.password=hunter2-value"]}]
)
@pytest.mark.parametrize("quotes", ["", '"'])
def test_a_secret_is_set_by_reference_alone_and_is_not_repeated(
    config: Path, layer: dict[str, object], quotes: str
) -> None:
    variables = {key: f"{quotes}{value}{quotes}" for key, value in layer.get("variables", {}).items()}  # type: ignore[attr-defined]
    said = [word.replace("=", f"={quotes}") + quotes for word in layer.get("said", [])]  # type: ignore[attr-defined]
    where, message = refusal(config, "", variables=variables, said=said)
    assert where in ("HEADPOND_REDIS__PASSWORD", "--set redis.password")
    assert "hunter2" not in where + message
    assert '{env = "NAME"} or {file = "PATH"}' in message


@pytest.mark.parametrize(
    "name",
    ["HEADPOND_DEFAULTS__SLOTS", "HEADPOND_MODELS__CHAT__SLOTS", "HEADPOND_REDIS__URL", "headpond_x__y", "PATH", "HOME",
     "HEADPOND_REDIS_URL", "HEADPOND_CACHE", "LD_LIBRARY_PATH", "A B", "1A", "", "a=b", "x\\ny", "%(ENV_HOME)s"],
)  # fmt: skip
def test_a_secret_cannot_stand_where_settings_stand(config: Path, name: str) -> None:
    where, message = refusal(config, f'[redis]\npassword = {{env = "{name}"}}\n')
    assert where == f"{config}:2"
    assert "[redis] password" in message
    assert "variable" in message


@pytest.mark.parametrize("query", ["redis://:pw@h", "redis://u:pw@h", "redis://h?password=pw"])
@pytest.mark.parametrize("key", ["redis.url", "storage.endpoint_url"])
def test_a_url_with_a_password_is_refused_in_any_layer(config: Path, key: str, query: str) -> None:
    table, _, field = key.partition(".")
    variable = f"HEADPOND_{table.upper()}__{field.upper()}"
    for layers, place in (
        ({"said": [f"{key}={query}"]}, f"--set {key}"),
        ({"variables": {variable: query}}, variable),
    ):
        where, message = refusal(config, "", **layers)
        assert where == place
        assert "holds a password" in message
        assert "pw@" not in message


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("\n[storge]\n", 2, "unknown table [storge]"),
        ("\n\n[defaults]\nslot = 3\n", 4, "unknown key 'slot' in [defaults]"),
        (SCRIPTED + "\nlease = 3\n", 4, "unknown key 'lease' in [models.chat]"),
        (SCRIPTED + "slots = 0\n", 3, "[models.chat] slots: "),
        (SCRIPTED + 'slots = "4"\n', 3, "[models.chat] slots: it must be an integer, not a string"),
        (SCRIPTED + "slots = true\n", 3, "[models.chat] slots: it must be an integer, not true or false"),
        (SCRIPTED + "tenant_weights = {a = 1, b = 0}\n", 3, "[models.chat] tenant_weights.b: "),
        ("[models.a]\n\n[models.b]\n", 1, "[models.a] names no engine"),
        ('[defaults]\nslots = 0\n[models.a]\nengine = "scripted"\n', 2, "[models.a] slots: "),
        ('[models.a]\nslots = 4\nengine = "exllamav2"\npaged = false\npath = "p"\n', 1, "[models.a] paged = false"),
        ('[models.a]\nengine = "exllamav2"\n', 1, '[models.a] give path = "FOLDER" or source = '),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_told_with_its_line(config: Path, text: str, line: int, said: str) -> None:
    where, message = refusal(config, text)
    assert where == f"{config}:{line}"
    assert message.startswith(said)


def test_a_name_given_twice_is_refused_with_both_lines(config: Path) -> None:
    where, message = refusal(config, f"{SCRIPTED}slots = 1\n\n{SCRIPTED}")
    assert where == f"{config}:5"
    assert message == "not valid TOML: [models.chat] is given twice, at line 1 and at line 5"


def test_the_first_mistake_is_told_and_the_others_are_counted(config: Path) -> None:
    text = SCRIPTED + "slots = 0\nlease = 1\nlease_s = 'x'\n[storage]\nbucket = 'A'\n"
    _, message = refusal(config, text)
    assert message.endswith("(3 more problems: headpond config check)")
    assert len(examine(config, command_line=()).problems) == 4


def test_a_table_of_another_model_is_no_concern_of_a_worker(config: Path) -> None:
    text = SCRIPTED + "[models.code]\nengine = 'llamacpp'\n"
    config.write_text(text)
    with pytest.raises(ConfigError, match=r"\[models\.code\]"):
        load_settings(config)
    found = load_settings(config, needed=["chat"])
    assert set(found.models) == {"chat"}
    assert load_settings(config, needed=()).models.keys() == {"chat"}
    with pytest.raises(ConfigError, match=r"\[models\.code\]"):
        load_settings(config, needed=["code"])
    # Its variables may be all that makes it whole.
    whole = load_settings(config, environment={"HEADPOND_MODELS__CODE__SOURCE": "smollm2-135m:Q8_0"})
    assert isinstance(whole.model("code"), LlamaCppModel)


def test_a_mistake_that_concerns_all_is_told_to_all(config: Path) -> None:
    config.write_text(SCRIPTED + "[storage]\nbucket = 'A'\n")
    with pytest.raises(ConfigError, match="bucket"):
        load_settings(config, needed=["chat"])


# Whatever anybody writes.

names = st.sampled_from(
    ["slots", "lease_s", "tenant_weights", "adapters", "draft", "path", "password", "url", "env", "file", "engine", "x",
     "access_key", "devices", "gpu_split", "a-b", "a.b", ""]
)  # fmt: skip
values = st.recursive(
    st.one_of(
        st.integers(-3, 300), st.booleans(), st.floats(), st.sampled_from(["scripted", "exllamav2", "", "~/x", "\0"])
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(names, values, max_size=4)


@settings(deadline=None, max_examples=200)
@given(
    raw=st.dictionaries(st.sampled_from(["defaults", "redis", "storage", "x"]), values, max_size=3),
    models=st.dictionaries(st.sampled_from(["chat", "a-b", "a.b", "redis", "BAD"]), tables, max_size=3),
    said=st.lists(st.text(max_size=6) | st.builds("{}={}".format, st.sampled_from(["chat.slots", "redis.url"]), names)),
    variables=st.dictionaries(
        st.builds("HEADPOND_{}__{}".format, st.sampled_from(["DEFAULTS", "MODELS__A_B", "MODELS__CHAT", "REDIS"]),
                  names.map(str.upper)),
        st.text(max_size=8) | names, max_size=3,
    ),
)  # fmt: skip
def test_anything_is_read_or_refused_with_its_place(
    raw: dict[str, Any], models: dict[str, Any], said: list[str], variables: dict[str, str]
) -> None:
    file = Path("/srv/headpond.toml")
    files = ConfigFiles()
    add_tables(files, {**raw, "models": models}, file, {})
    examined = assemble(files, file, Told(variables, tuple(said)))
    for problem in examined.problems:
        assert problem.where
        assert problem.message
    if not examined.problems:
        assert examined.settings.models.keys() == models.keys()
        assert {dotted(("models", name, "slots")) for name in models} <= examined.settings.origins.keys()
        assert all_problems(examined) is not None


def test_many_models_are_read_at_once(config: Path) -> None:
    table = 'engine = "scripted"\n' + "".join(f"tenant_weights.t{n} = 2\n" for n in range(20))
    text = "".join(f"[models.m{n}]\n{table}" for n in range(300))
    began = time.perf_counter()
    assert len(load(config, text).models) == 300
    assert time.perf_counter() - began < 10  # about 1 s; what grows with the square would take minutes


# Where clients look.


def test_a_client_takes_the_servers_layers_and_no_mistake_of_a_model(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("HEADPOND_")]:
        monkeypatch.delenv(name)
    config.write_text("[redis]\nurl = 'redis://file'\n[models.chat]\n")
    monkeypatch.chdir(config.parent)
    assert find_redis().url == "redis://file"
    monkeypatch.setenv("HEADPOND_REDIS__URL", "redis://layer")
    assert find_redis().url == "redis://layer"
    (config.parent / ".headpond").mkdir()
    told = Told({}, ("redis.url=redis://told",))
    (config.parent / ".headpond" / "up.json").write_text(told.document())
    assert find_redis().url == "redis://told"
    monkeypatch.setenv("HEADPOND_REDIS_URL", "redis://variable")
    assert find_redis().url == "redis://variable"
    assert find_redis("redis://argument").url == "redis://argument"


# Several files.


def conf_d(config: Path, **files: str) -> None:
    folder = config.parent / "conf.d"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)


def test_files_of_conf_d_are_read_beside_it_in_order(config: Path) -> None:
    conf_d(config, b=SCRIPTED.replace("chat", "b"), a=SCRIPTED.replace("chat", "a") + "slots = 2\n")
    (config.parent / "conf.d" / "notes.txt").write_text("no configuration")
    (config.parent / "conf.d" / ".hidden.toml").write_text("[nonsense")
    found = load(config, SCRIPTED)
    assert list(found.models) == ["chat", "a", "b"]
    assert found.origins["models.a.slots"].shown(found.folder) == "conf.d/a.toml:3"


def test_a_relative_path_is_relative_to_its_own_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = config.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    conf_d(
        config,
        a='[models.a]\nengine = "exllamav2"\npath = "w/a"\nadapters = {x = {path = "lora"}}\n'
        '[storage]\nsecret_key = {file = "key"}\n',
        b='[models.b]\nengine = "exllamav2"\n',
    )
    found = load(
        config,
        '[defaults]\npath = "w/of-all"\n[models.c]\nengine = "exllamav2"\n',
        variables={"HEADPOND_MODELS__C__PATH": "w/c"},
        said=['a.adapters.y.path="lora/y"'],
    )
    folder = config.parent
    a, b, c = map(found.model, "abc")
    assert isinstance(a, ExLlamaV2Model)
    assert (a.path, a.adapters["x"].path) == (folder / "conf.d/w/a", folder / "conf.d/lora")
    assert a.adapters["y"].path == folder / "lora/y"
    assert isinstance(b, ExLlamaV2Model)
    assert isinstance(c, ExLlamaV2Model)
    assert (b.path, c.path) == (folder / "w/of-all", folder / "w/c")
    assert found.storage.secret_key == SecretRef(file=folder / "conf.d/key")


def test_a_model_in_two_files_is_refused_with_both_places(config: Path) -> None:
    conf_d(config, a="\n" + SCRIPTED)
    where, message = refusal(config, SCRIPTED)
    second = config.parent / "conf.d" / "a.toml"
    assert where == f"{second}:2"
    assert message == f"[models.chat] is given twice: at {config}:1 and at {second}:2"


@pytest.mark.parametrize("table", ["defaults", "redis", "storage"])
def test_a_table_for_all_stands_in_one_file_whichever(config: Path, table: str) -> None:
    line = {"defaults": "slots = 2", "redis": 'url = "redis://h"', "storage": 'region = "r"'}[table]
    conf_d(config, a=f"[{table}]\n{line}\n")
    found = load(config, SCRIPTED)
    assert (found.model("chat").slots, found.redis.url, found.storage.region) != (4, None, "us-east-1")
    conf_d(config, b=f"\n\n[{table}]\n")
    where, message = refusal(config, SCRIPTED)
    folder = config.parent / "conf.d"
    assert where == f"{folder / 'b.toml'}:3"
    assert message == f"[{table}] is given twice: at {folder / 'a.toml'}:1 and at {folder / 'b.toml'}:3"


def test_a_mistake_in_conf_d_is_told_with_its_own_file(config: Path) -> None:
    conf_d(config, a="[model.x]\n")
    assert refusal(config, "")[0] == f"{config.parent / 'conf.d' / 'a.toml'}:1"
    conf_d(config, a="[models.x\n")
    assert refusal(config, "")[0] == f"{config.parent / 'conf.d' / 'a.toml'}:1"
    (config.parent / "conf.d" / "a.toml").write_bytes(b"\xff")
    assert "cannot be read" in refusal(config, "")[1]


# What `up` was told.


def test_what_up_was_told_counts_for_whoever_comes_later(config: Path) -> None:
    config.write_text(SCRIPTED)
    state = config.parent / ".headpond"
    state.mkdir()
    told = Told({"HEADPOND_DEFAULTS__SLOTS": "7"}, ("chat.lease_s=3",))
    (state / "up.json").write_text(told.document())
    later = {"HEADPOND_DEFAULTS__SLOTS": "9", "HEADPOND_MODELS__CHAT__LEASE_S": "8"}
    found = load_settings(config, environment=later)
    assert (found.model("chat").slots, found.model("chat").lease_s) == (7, 3)
    assert found.told == told
    # The next `up` says everything anew.
    again = load_settings(config, environment=later, command_line=())
    assert (again.model("chat").slots, again.model("chat").lease_s) == (9, 8)
    assert again.told == Told(later)


def test_what_was_told_of_a_model_that_is_gone_since_hinders_nobody(config: Path) -> None:
    config.write_text(SCRIPTED)
    state = config.parent / ".headpond"
    state.mkdir()
    told = Told(
        {"HEADPOND_MODELS__GONE__SLOTS": "7", "HEADPOND_MODELS__CHAT__LEASE_S": "3"}, ("gone.slots=3", "chat.slots=9")
    )
    (state / "up.json").write_text(told.document())
    found = load_settings(config)
    assert (found.model("chat").slots, found.model("chat").lease_s) == (9, 3)
    assert found.told == Told({"HEADPOND_MODELS__CHAT__LEASE_S": "3"}, ("chat.slots=9",))
    # Said now, it is a mistake.
    with pytest.raises(ConfigError, match="'gone' is neither"):
        load_settings(config, command_line=["gone.slots=3"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "headpond/up", "v": 2, "set": [], "environment": {}}',
             '{"schema": "headpond/up", "v": 1, "set": [7], "environment": {}}',
             '{"schema": "headpond/up", "v": 1, "set": "ab", "environment": {}}',
             '{"schema": "headpond/up", "v": 1, "set": [], "environment": {"A": 1}}', " " * (MAX_BYTES + 1)]
)  # fmt: skip
def test_a_damaged_note_of_it_is_refused_with_what_to_do(config: Path, text: str) -> None:
    config.write_text(SCRIPTED)
    state = config.parent / ".headpond"
    state.mkdir()
    (state / "up.json").write_text(text)
    with pytest.raises(ConfigError, match="headpond up again") as refused:
        load_settings(config)
    assert refused.value.where == str(state / "up.json")
    assert load_settings(config, command_line=()).model("chat").slots == 4
