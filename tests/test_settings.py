"""headpond.toml: every mistake is refused with its place and what to write; what is right is read as written."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from headpond.connections import find_redis, redis_of
from headpond.errors import ConfigError, HeadpondError
from headpond.settings import (
    RedisSettings,
    SecretRef,
    Settings,
    StorageSettings,
    find_config,
    load_settings,
)
from headpond.tables import AdapterTable, ExLlamaV2Model, LlamaCppModel, ScriptedModel

KNOWN_ENGINES = "known: exllamav2, exllamav3, llamacpp, openai, scripted"
SCRIPTED = '[models.chat]\nengine = "scripted"\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "headpond.toml"


def load(config: Path, text: str) -> Settings:
    config.write_text(text, encoding="utf-8")
    return load_settings(config)


def refusal(config: Path, text: str) -> str:
    """What is said of a file that is wrong. Every refusal names the file."""
    with pytest.raises(ConfigError) as refused:
        load(config, text)
    assert isinstance(refused.value, HeadpondError)
    place = re.compile(rf"{re.escape(str(config))}(:\d+)?")
    assert place.fullmatch(refused.value.where)
    message = str(refused.value)
    assert message.startswith(f"{refused.value.where}: ")
    return message.removeprefix(f"{refused.value.where}: ")


def test_a_whole_file_is_read_as_it_is_written(config: Path) -> None:
    settings = load(
        config,
        """
        [redis]
        url = "redis://db:6379/1"
        password = {env = "REDIS_PASSWORD"}
        [storage]
        endpoint_url = "http://s3:8333"
        bucket = "pond"
        region = "eu-1"
        access_key = {env = "S3_KEY"}
        secret_key = {file = "/run/secrets/s3"}
        [defaults]
        slots = 8
        [models.chat]
        engine = "scripted"
        tokens_per_s = 20
        lease_s = 0.5
        [models."smol.135m-v1_x"]
        engine = "llamacpp"
        source = "smollm2-135m:Q8_0"
        threads = 2
        """,
    )
    assert settings.redis == RedisSettings(url="redis://db:6379/1", password=SecretRef(env="REDIS_PASSWORD"))
    assert settings.storage == StorageSettings(
        endpoint_url="http://s3:8333", bucket="pond", region="eu-1", access_key=SecretRef(env="S3_KEY"),
        secret_key=SecretRef(file=Path("/run/secrets/s3")),
    )  # fmt: skip
    chat, smol = settings.model("chat"), settings.model("smol.135m-v1_x")
    assert isinstance(chat, ScriptedModel)
    assert (chat.slots, chat.tokens_per_s, chat.lease_s, chat.workers) == (8, 20.0, 0.5, 1)
    assert isinstance(smol, LlamaCppModel)
    assert (smol.slots, smol.source, smol.threads, smol.path) == (8, "smollm2-135m:Q8_0", 2, None)
    assert settings.folder == config.parent
    assert settings.state_folder == config.parent / ".headpond"


def test_an_empty_file_configures_nothing_and_is_no_error(config: Path) -> None:
    settings = load(config, "")
    assert settings.models == {}
    assert settings.redis.url is None
    assert settings.storage.endpoint_url is None


def test_what_is_said_of_a_model_beats_what_is_said_of_all(config: Path) -> None:
    settings = load(
        config,
        """
        [defaults]
        engine = "scripted"
        slots = 2
        threads = 8
        lease_s = 3.0
        [models.one]
        [models.two]
        slots = 5
        [models.three]
        engine = "llamacpp"
        path = "/weights/three.gguf"
        """,
    )
    one, two, three = map(settings.model, ("one", "two", "three"))
    assert isinstance(one, ScriptedModel)
    assert (one.slots, two.slots, three.slots) == (2, 5, 2)
    assert {m.lease_s for m in (one, two, three)} == {3.0}
    # `threads` is for models that have a use for it.
    assert isinstance(three, LlamaCppModel)
    assert three.threads == 8


def test_a_relative_path_is_relative_to_the_file_wherever_the_process_works(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config.write_text('[models.a]\nengine = "llamacpp"\npath = "weights/a.gguf"\n')
    for spelling in (config, Path("../headpond.toml")):
        model = load_settings(spelling).model("a")
        assert isinstance(model, LlamaCppModel)
        assert model.path == tmp_path / "weights/a.gguf"


def test_an_absolute_path_and_a_home_path_are_not_moved(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-the-test")
    settings = load(
        config,
        '[models.a]\nengine = "llamacpp"\npath = "/weights/a.gguf"\n'
        '[models.b]\nengine = "llamacpp"\npath = "~/b.gguf"\n',
    )
    a, b = settings.model("a"), settings.model("b")
    assert isinstance(a, LlamaCppModel)
    assert isinstance(b, LlamaCppModel)
    assert a.path == Path("/weights/a.gguf")
    assert b.path == Path("/home/of-the-test/b.gguf")


def test_a_secret_file_is_relative_to_the_file_wherever_the_process_works(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("s3cr3t\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    settings = load(config, '[storage]\nsecret_key = {file = "key"}\n[redis]\npassword = {file = "key"}\n')
    assert settings.storage.secret_key is not None
    assert settings.redis.password is not None
    assert settings.storage.secret_key.resolve(where="here") == "s3cr3t"
    assert settings.redis.password.resolve(where="here") == "s3cr3t"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[model.chat]\n", "unknown table [model]; did you mean 'models'?"),
        ("[storge]\n", "unknown table [storge]; did you mean 'storage'?"),
        ("[qwertz]\n", "unknown table [qwertz]"),
        ("slots = 3\n", "unknown table [slots]"),
        ("[defaults]\nslot = 3\n", "unknown key 'slot' in [defaults]; did you mean 'slots'?"),
        ("[redis]\nurI = 'x'\n", "unknown key 'urI' in [redis]; did you mean 'url'?"),
        ("[storage]\nbuckets = 'x'\n", "unknown key 'buckets' in [storage]; did you mean 'bucket'?"),
        (SCRIPTED + "lease = 3\n", "unknown key 'lease' in [models.chat]; did you mean 'lease_s'?"),
        (SCRIPTED + "threads = 3\n", "unknown key 'threads' in [models.chat]"),
        ('[models.a]\nengine = "llamacpp"\npath = "x"\ntokens_per_s = 1\n', "unknown key 'tokens_per_s' in [models.a]"),
        ("models = 3\n", "'models' must be a table: [models]"),
        ("redis = 'redis://x'\n", "'redis' must be a table: [redis]"),
        ("[models]\nchat = 'scripted'\n", "'models.chat' must be a table: [models.chat]"),
        ("[models.chat]\nslots = 1\n", "[models.chat] names no engine; " + KNOWN_ENGINES),
        (
            '[models.chat]\nengine = "scriptd"\n',
            "[models.chat] engine = 'scriptd': no such engine; did you mean 'scripted'?; " + KNOWN_ENGINES,
        ),
        ("[models.chat]\nengine = 7\n", "[models.chat] engine = 7: no such engine; " + KNOWN_ENGINES),
        ("[models.chat]\nengine = ['scripted']\n", "[models.chat] engine = ['scripted']: no such engine"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest_one(config: Path, text: str, said: str) -> None:
    assert refusal(config, text).startswith(said)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slots", "0"), ("slots", "1025"), ("slots", "'four'"), ("slots", "1.5"), ("workers", "-1"), ("workers", "65"),
        ("lease_s", "0.1"), ("lease_s", "nan"), ("lease_s", "-inf"), ("drain_timeout_s", "-1"), ("max_queued", "-1"),
        ("retention_s", "0"), ("stall_timeout_s", "0"), ("tokens_per_s", "0"), ("tokens_per_s", "inf"),
        ("context_tokens", "15"), ("answer_tokens", "0"), ("crash_at", "'noon'"),
        ("retention_s", "inf"), ("prefill_tokens_per_s", "inf"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_its_key(config: Path, key: str, value: str) -> None:
    message = refusal(config, f"{SCRIPTED}{key} = {value}\n")
    assert message.startswith(f"[models.chat] {key}: ")


@pytest.mark.parametrize("name", ["Chat", "1chat", "-chat", "ch/at", "ch at", "", "a" * 64, "caf\u00e9", "{chat}"])
def test_an_ill_formed_name_is_refused(config: Path, name: str) -> None:
    message = refusal(config, f'[models."{name}"]\nengine = "scripted"\n')
    assert f"[models.{name}]" in message
    assert "cannot name a model" in message


@pytest.mark.parametrize("name", ["persistence", "models"])
def test_a_reserved_name_is_refused(config: Path, name: str) -> None:
    assert "reserved name" in refusal(config, f'[models.{name}]\nengine = "scripted"\n')


def test_a_model_given_twice_is_refused_with_the_line(config: Path) -> None:
    message = refusal(config, f"{SCRIPTED}slots = 1\n\n{SCRIPTED}")
    assert message.startswith("not valid TOML: ")
    assert "chat" in message
    assert "line 5" in message


@pytest.mark.parametrize(
    ("text", "line"), [("[models.chat\n", 1), ("[redis]\nurl =\n", 2), ("[redis]\nurl = 'a'\nurl = 'b'\n", 3)]
)
def test_what_is_no_toml_is_refused_with_the_line(config: Path, text: str, line: int) -> None:
    message = refusal(config, text)
    assert message.startswith("not valid TOML: ")
    assert f"line {line}" in message


def test_a_missing_file_is_refused_with_what_to_do(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file.*headpond\.toml") as refused:
        load_settings(config)
    assert refused.value.where == str(config)


def test_a_file_that_cannot_be_read_is_refused(config: Path, tmp_path: Path) -> None:
    config.write_bytes(b'[redis]\nurl = "\xff"\n')
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(config)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("", "exactly one of them"),
        ('path = "a.gguf"\nsource = "b:Q8_0"\n', "exactly one of them"),
        ("path = 7\n", "[models.a] path: "),
        ('source = "b:Q8_0"\nthreads = 0\n', "[models.a] threads: "),
        ('source = "b:Q8_0"\ncontext_tokens = 63\n', "[models.a] context_tokens: "),
        ('source = "b:Q8_0"\nexact = "perhaps"\n', "[models.a] exact: "),
    ],
)
def test_weights_stand_in_exactly_one_place(config: Path, extra: str, said: str) -> None:
    message = refusal(config, f'[models.a]\nengine = "llamacpp"\n{extra}')
    assert said in message
    assert "[models.a]" in message


@pytest.mark.parametrize("place", ["[redis]\npassword", "[storage]\naccess_key", "[storage]\nsecret_key"])
@pytest.mark.parametrize(
    "value",
    [
        '"hunter2-in-plain"',
        '{value = "hunter2-in-plain"}',
        '{env = "A", file = "b-hunter2-in-plain"}',
        '["hunter2-in-plain"]',
        "{}",
    ],
)
def test_a_secret_that_is_no_reference_is_refused_without_repeating_it(config: Path, place: str, value: str) -> None:
    message = refusal(config, f"{place} = {value}\n")
    assert "hunter2" not in message
    section, _, key = place.partition("\n")
    assert section in message
    assert key in message
    assert '{env = "NAME"} or {file = "PATH"}' in message


def test_a_bucket_that_s3_refuses_is_refused_before(config: Path) -> None:
    for bucket in ("A", "ab", "-ab", "a_b", "a" * 64):
        assert refusal(config, f'[storage]\nbucket = "{bucket}"\n').startswith("[storage] bucket: ")


def test_a_secret_is_resolved_from_its_place_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_THE_TEST", "from the environment")
    assert SecretRef(env="KEY_OF_THE_TEST").resolve(where="here") == "from the environment"
    file = tmp_path / "key"
    file.write_text("from a file\n")
    assert SecretRef(file=file).resolve(where="here") == "from a file"


def test_a_secret_that_cannot_be_resolved_names_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEY_OF_THE_TEST", raising=False)
    with pytest.raises(ConfigError, match=r"\[storage\] access_key: .*KEY_OF_THE_TEST is not set"):
        SecretRef(env="KEY_OF_THE_TEST").resolve(where="[storage] access_key")
    with pytest.raises(ConfigError, match=r"here: cannot read the secret file .*none"):
        SecretRef(file=tmp_path / "none").resolve(where="here")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="binary"):
        SecretRef(file=tmp_path / "binary").resolve(where="here")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        SecretRef(file=tmp_path / "empty").resolve(where="here")


def test_an_unknown_model_is_refused_with_the_nearest_one(config: Path) -> None:
    settings = load(config, SCRIPTED)
    with pytest.raises(ConfigError, match=r"no table \[models.chta\]; did you mean 'chat'\?") as refused:
        settings.model("chta")
    assert refused.value.where == str(config)


def test_the_nearest_file_upwards_is_found(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_config(deep) is None
    config.write_text("")
    assert find_config(deep) == config
    (tmp_path / "a" / "headpond.toml").write_text("")
    assert find_config(deep) == tmp_path / "a" / "headpond.toml"
    monkeypatch.chdir(deep)
    assert find_config() == tmp_path / "a" / "headpond.toml"
    # What is no file is not passed over: whoever reads it says so.
    (deep / "headpond.toml").mkdir()
    assert find_config() == deep / "headpond.toml"


# Where the server is.


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nothing says where Redis is."""
    monkeypatch.delenv("HEADPOND_REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_file(folder: Path, text: str) -> None:
    (folder / ".headpond").mkdir(mode=0o700)
    (folder / ".headpond" / "run.json").write_text(text)


def test_the_server_is_looked_for_in_a_fixed_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="HEADPOND_REDIS_URL") as refused:
        find_redis()
    assert refused.value.where == str(nowhere)

    (nowhere / "headpond.toml").write_text(SCRIPTED)
    with pytest.raises(ConfigError, match="headpond up"):
        find_redis()

    run_file(nowhere, '{"redis_url": "redis://:pw@127.0.0.1:4/0"}')
    address = find_redis()
    assert (address.url, address.configured_in) == (
        "redis://:pw@127.0.0.1:4/0", str(nowhere / ".headpond" / "run.json"),
    )  # fmt: skip

    (nowhere / "headpond.toml").write_text('[redis]\nurl = "redis://in-the-file:3"\n')
    assert find_redis().url == "redis://in-the-file:3"
    assert find_redis().configured_in == f"{nowhere / 'headpond.toml'} [redis] url"

    monkeypatch.setenv("HEADPOND_REDIS_URL", "redis://in-the-environment:2")
    assert find_redis().url == "redis://in-the-environment:2"
    assert find_redis().configured_in == "HEADPOND_REDIS_URL"

    assert find_redis("redis://argument:1").url == "redis://argument:1"
    assert find_redis("redis://argument:1").configured_in == "the url argument"

    monkeypatch.setenv("HEADPOND_REDIS_URL", "")
    deep = nowhere / "deep"
    deep.mkdir()
    monkeypatch.chdir(deep)
    assert find_redis().url == "redis://in-the-file:3"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"redis_url": 7}', '{"redis_url": "http://x"}', "\x00"])
def test_a_damaged_run_file_is_refused_by_its_name(nowhere: Path, text: str) -> None:
    (nowhere / "headpond.toml").write_text("")
    run_file(nowhere, text)
    with pytest.raises(ConfigError) as refused:
        find_redis()
    assert refused.value.where == str(nowhere / ".headpond" / "run.json")


def test_a_password_by_reference_is_put_into_the_url_and_never_shown(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD_OF_THE_TEST", "p@ss/w:rd?#")
    file = nowhere / "headpond.toml"
    file.write_text('[redis]\nurl = "rediss://worker@db:6380/2"\npassword = {env = "PASSWORD_OF_THE_TEST"}\n')
    address = redis_of(load_settings(file))
    assert address.url == "rediss://worker:p%40ss%2Fw%3Ard%3F%23@db:6380/2"
    assert address.shown == "rediss://db:6380/2"
    assert "w%3Ard" not in repr(address)
    monkeypatch.delenv("PASSWORD_OF_THE_TEST")
    with pytest.raises(ConfigError, match=r"\[redis\] password: .*PASSWORD_OF_THE_TEST"):
        redis_of(load_settings(file))


@pytest.mark.parametrize(
    "url", ["http://db", "db:6379", "", "redis://db:port/0", "redis://db:70000", "redis://[::1"]
)  # fmt: skip
def test_a_url_that_is_none_is_refused_where_it_stands(nowhere: Path, url: str, monkeypatch: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        find_redis(url)
    assert refused.value.where == "the url argument"
    (nowhere / "headpond.toml").write_text(f'[redis]\nurl = "{url}"\n')
    with pytest.raises(ConfigError) as refused:
        find_redis()
    assert str(refused.value).startswith(str(nowhere / "headpond.toml"))
    assert "[redis] url" in str(refused.value)
    if url:
        monkeypatch.setenv("HEADPOND_REDIS_URL", url)
        with pytest.raises(ConfigError) as refused:
            find_redis()
        assert refused.value.where == "HEADPOND_REDIS_URL"


def test_a_password_that_breaks_its_url_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        find_redis("redis://:hunter2/and#more@db:6379/0")
    assert "hunter2" not in str(refused.value)
    assert "%2F" in str(refused.value)


def test_nothing_is_written_by_looking(nowhere: Path) -> None:
    config = nowhere / "headpond.toml"
    config.write_text(SCRIPTED)
    config.chmod(0o400)
    load_settings(config)
    assert os.listdir(nowhere) == ["headpond.toml"]
    assert stat.S_IMODE(config.stat().st_mode) == 0o400


EXLLAMA = '[models.big]\nengine = "exllamav2"\npath = "weights"\n'


def test_an_exllamav2_table_is_read_with_its_paths_beside_the_file(config: Path) -> None:
    config.write_text(
        EXLLAMA + "slots = 8\ncontext_tokens = 1024\ndevices = [0, 1]\ngpu_split = [10.5, 20]\n"
        'adapters = {formal = {path = "lora/formal", scaling = 0.5}}\n'
        'draft = {path = "/small", tokens = 3}\n'
    )
    model = load_settings(config).model("big")

    assert isinstance(model, ExLlamaV2Model)
    assert (model.path, model.devices, model.gpu_split) == (config.parent / "weights", (0, 1), (10.5, 20.0))
    assert model.adapters == {"formal": AdapterTable(path=config.parent / "lora/formal", scaling=0.5)}
    assert model.draft is not None
    assert (model.draft.path, model.draft.tokens) == (Path("/small"), 3)
    assert model.shared_cache_tokens == 8 * 1024


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("context_tokens = 1000", "context_tokens: must be a multiple of 256"),
        ("cache_tokens = 256", "cannot hold one sequence"),
        ("devices = [0, 0]", "names a device twice"),
        ("paged = false", "write slots = 1, not 4"),
        ("gpu_split = [1]\nautosplit_reserve_mib = [64]", "not both"),
        ('tensor_parallel = true\ndraft = {path = "d"}', "has no draft model"),
        ('cache = "Q5"', "cache"),
        ('adapters = {"A B" = {path = "a"}}', "adapters"),
        ('adapters = {a = {path = "a", scale = 2}}', "unknown key 'scale'"),
    ],
)
def test_an_exllamav2_table_that_cannot_be_is_refused(config: Path, line: str, said: str) -> None:
    config.write_text(EXLLAMA + line)
    with pytest.raises(ConfigError, match=r"models\.big") as refused:
        load_settings(config)
    assert said in str(refused.value)
