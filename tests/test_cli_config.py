"""`headpond config`: what it shows, what it hides, and what it finds."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from headpond import config_check
from headpond.cli import exits
from headpond.cli.config import register
from headpond.errors import HeadpondError
from headpond.up_file import Told

HEADPOND = Path(sys.executable).with_name("headpond")
CONFIG = """\
[redis]
url = "redis://h:6379/0"
password = {env = "PW_OF_THE_TEST"}
[defaults]
slots = 2
[models.chat]
engine = "scripted"
tenant_weights = {acme = 3}
[models."a.b"]
engine = "scripted"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "headpond.toml").write_text(CONFIG)
    return tmp_path


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


def run(folder: Path, *words: str, environment: Mapping[str, str] | None = None) -> Ended:
    """The command in this process; an error that is the user's as the `headpond` command ends with it."""
    app = typer.Typer()
    register(app)
    clean = {name: None for name in os.environ if name.startswith("HEADPOND_")}
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, words, env={**clean, **(environment or {})})
    if isinstance(result.exception, HeadpondError):
        return Ended(exits.exit_code(result.exception), result.stdout, str(result.exception))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def shown(folder: Path, *words: str, environment: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    ended = run(folder, "config", "show", "--json", *words, environment=environment)
    assert ended.returncode == 0, ended.stderr
    return {row["key"]: row for row in json.loads(ended.stdout)["settings"]}


def test_every_value_is_shown_with_its_origin(folder: Path) -> None:
    ended = run(
        folder, "config", "show", "--origin", "--set", "chat.lease_s=3",
        environment={"HEADPOND_DEFAULTS__WORKERS": "2", "PW_OF_THE_TEST": "hunter2-value"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = {line.partition(" = ")[0]: line.partition("#")[2].strip() for line in ended.stdout.splitlines()}
    assert found["models.chat.slots"] == "headpond.toml:5 [defaults]"
    assert found["models.chat.workers"] == "HEADPOND_DEFAULTS__WORKERS"
    assert found["models.chat.lease_s"] == "--set"
    assert found["models.chat.max_queued"] == "built-in"
    assert found["models.chat.tenant_weights.acme"] == "headpond.toml:8"
    assert found['models."a.b".engine'] == "headpond.toml:10"
    assert found["storage.bucket"] == "built-in"
    assert "redis.password = **** (env PW_OF_THE_TEST)" in ended.stdout
    assert "hunter2" not in ended.stdout + ended.stderr


def test_the_example_of_the_document_is_shown_as_it_says(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "headpond.toml").write_text(example)
    ((variable, value, command, output),) = re.findall(
        r"^```console\n\$ (\w+)=(\S+) headpond ([^\n]*)\n(.*?)^\.\.\.\n```", text, re.MULTILINE | re.DOTALL
    )
    ended = run(tmp_path, *command.split(), environment={variable: value})
    assert ended.returncode == 0
    assert len(output.splitlines()) >= 3
    assert set(output.splitlines()) <= set(ended.stdout.splitlines()), ended.stdout


def test_one_model_is_shown_alone_and_for_machines(folder: Path) -> None:
    rows = shown(folder, "chat")
    assert all(key.startswith("models.chat.") for key in rows)
    assert rows["models.chat.slots"] == {
        "key": "models.chat.slots", "value": 2, "origin": "headpond.toml:5 [defaults]",
    }  # fmt: skip
    secret = shown(folder)["redis.password"]
    assert (secret["value"], secret["reference"]) == ("****", {"env": "PW_OF_THE_TEST"})
    unknown = run(folder, "config", "show", "chta")
    assert unknown.returncode == 2
    assert "did you mean 'chat'?" in unknown.stderr


def test_what_runs_is_shown_as_it_was_told(folder: Path) -> None:
    (folder / ".headpond").mkdir()
    told = Told({"HEADPOND_DEFAULTS__WORKERS": "3"}, ("chat.slots=9",))
    (folder / ".headpond" / "up.json").write_text(told.document())
    now = {"HEADPOND_DEFAULTS__WORKERS": "5"}
    running = shown(folder, "--running", environment=now)
    assert (running["models.chat.workers"]["value"], running["models.chat.slots"]["value"]) == (3, 9)
    next_up = shown(folder, environment=now)
    assert (next_up["models.chat.workers"]["value"], next_up["models.chat.slots"]["value"]) == (5, 2)
    assert run(folder, "config", "show", "--running", "--set", "chat.slots=1").returncode == 2


def test_a_right_configuration_has_no_problem(folder: Path) -> None:
    ended = run(folder, "config", "check", environment={"PW_OF_THE_TEST": "x"})
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "2 models, no problem" in ended.stderr


def test_every_problem_is_found_at_once(folder: Path) -> None:
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "a.toml").write_text(
        '[storage]\nsecret_key = {file = "no-such-key"}\n'
        '[models.w]\nengine = "llamacpp"\npath = "no-such.gguf"\n'
        '[models.e]\nengine = "exllamav2"\npath = "/"\nadapters.x.path = "no-such-lora"\nslots = 0\nlease = 1\n'
    )
    (folder / "conf.d" / "b.toml").write_text("[storge]\n[models.chat]\n")
    (folder / "conf.d" / "c.toml").write_text("[broken\n")
    ended = run(
        folder, "config", "check", "--json", "--set", "w.context=3",
        environment={"HEADPOND_DEFAULTS__SLOT": "1", "HEADPOND_REDIS__URL": "http://h"},
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    document = json.loads(ended.stdout)
    found = [(row["where"], row["message"]) for row in document["problems"]]
    a, b, c = (str(folder / "conf.d" / name) for name in ("a.toml", "b.toml", "c.toml"))
    wanted = [
        (f"{a}:2", "[storage] secret_key: cannot read the secret file"),
        (f"{a}:2", "[storage] needs access_key and secret_key"),
        (f"{a}:5", "[models.w] path: there is no"),
        (f"{a}:10", "[models.e] slots: "),
        (f"{a}:11", "unknown key 'lease' in [models.e]"),
        (f"{b}:1", "unknown table [storge]"),
        (f"{b}:2", "[models.chat] is given twice"),
        (f"{c}:1", "not valid TOML"),
        ("--set w.context", "unknown key 'context' in [models.w]"),
        ("HEADPOND_DEFAULTS__SLOT", "unknown key 'slot' in [defaults]"),
        ("HEADPOND_REDIS__URL", "[redis] url: a Redis url begins with"),
        (f"{folder / 'headpond.toml'}:3", "[redis] password: the environment variable PW_OF_THE_TEST is not set"),
    ]
    for where, message in wanted:
        assert any(place == where and said.startswith(message) for place, said in found), (where, message)
    assert len(found) == len(wanted)


def test_paths_and_secrets_are_looked_for(folder: Path) -> None:
    (folder / "headpond.toml").write_text(
        '[models.w]\nengine = "llamacpp"\npath = "no-such.gguf"\n'
        '[models.e]\nengine = "exllamav2"\npath = "."\nadapters.x.path = "no-such-lora"\n'
    )
    ended = run(folder, "config", "check")
    assert ended.returncode == 2
    assert ended.stdout.splitlines() == [
        f"{folder}/headpond.toml:3: [models.w] path: there is no {folder}/no-such.gguf",
        f"{folder}/headpond.toml:7: [models.e] adapters.x.path: there is no {folder}/no-such-lora",
    ]
    (folder / "no-such.gguf").touch()
    (folder / "no-such-lora").mkdir()
    assert run(folder, "config", "check").returncode == 0


def test_a_configuration_without_a_model_is_a_problem_and_one_that_is_wrong_is_counted(folder: Path) -> None:
    (folder / "headpond.toml").write_text("")
    ended = run(folder, "config", "check")
    assert ended.returncode == 2
    assert ended.stdout == (
        f"{folder}/headpond.toml: names no model, and headpond up needs one: add a table such as [models.chat]\n"
    )
    assert ended.stderr == f"{folder}/headpond.toml: no models, 1 problem\n"
    (folder / "headpond.toml").write_text('[models.chat]\nengine = "scripted"\nslots = 0\n')
    ended = run(folder, "config", "check")
    assert ended.stdout == f"{folder}/headpond.toml:3: [models.chat] slots: must be 1 or more\n"
    assert ended.stderr == f"{folder}/headpond.toml: 1 model, 1 problem\n"
    assert json.loads(run(folder, "config", "check", "--json").stdout)["models"] == ["chat"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smollm2-135m:Q9_0", "'smollm2-135m' has no quantisation 'Q9_0'. Did you mean 'Q8_0'?"),
        ("smollm:Q8_0", "No model 'smollm' in the catalogue. Did you mean 'smollm2-135m'?"),
    ],
)
def test_a_source_that_the_catalogue_lacks_is_a_problem(folder: Path, source: str, message: str) -> None:
    (folder / "headpond.toml").write_text(f'[models.chat]\nengine = "llamacpp"\nsource = "{source}"\n')
    ended = run(folder, "config", "check")
    assert ended.returncode == 2
    assert ended.stdout.startswith(f"{folder}/headpond.toml:3: [models.chat] source: {message}")


def test_an_engine_that_is_not_installed_is_a_problem_that_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "headpond.toml").write_text(
        '[models.far]\nengine = "openai"\nbase_url = "http://h"\nupstream_model = "m"\n'
    )
    assert run(folder, "config", "check").returncode == 0
    monkeypatch.delitem(sys.modules, "openai", raising=False)
    monkeypatch.setattr(config_check, "find_spec", lambda module: None)
    ended = run(folder, "config", "check")
    assert ended.returncode == 2
    assert ended.stdout == (
        f'{folder}/headpond.toml:2: [models.far] engine = "openai" needs a package that is not installed: '
        "pip install 'headpond[proxy]'\n"
    )
    # One that has no workers here is served elsewhere.
    assert run(folder, "config", "check", "--set", "far.workers=0").returncode == 0


def test_each_extra_that_is_named_is_one_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    for module, extra in config_check.PACKAGES.values():
        assert any(requirement.startswith(module) for requirement in extras[extra])


def test_the_models_that_there_are_are_listed_while_they_are_few(folder: Path) -> None:
    ended = run(folder, "config", "show", "nosuch")
    assert (ended.returncode, ended.stderr) == (
        2, f"{folder}/headpond.toml: no table [models.nosuch]; there are: a.b, chat",
    )  # fmt: skip
    (folder / "headpond.toml").write_text("".join(f'[models.m{n}]\nengine = "scripted"\n' for n in range(11)))
    assert run(folder, "config", "show", "nosuch").stderr == f"{folder}/headpond.toml: no table [models.nosuch]"


PROXY = """\
[models.remote]
engine = "openai"
base_url = "https://h/v1"
upstream_model = "m"
api_key = {env = "KEY_OF_THE_TEST"}
proxy = {env = "PROXY_OF_THE_TEST"}
headers = {X-Team = "red", X-Other = {file = "other.key"}}
"""


@pytest.mark.parametrize("secret", ["sk-line\none", "sk-line\n", "sk-caf\u00e9", " sk-q", "sk-\x1b[31m"])
def test_a_secret_that_the_worker_will_refuse_is_found_and_not_shown(folder: Path, secret: str) -> None:
    (folder / "headpond.toml").write_text(PROXY)
    (folder / "other.key").write_text(f"x{secret}x")
    ended = run(
        folder, "config", "check", environment={"KEY_OF_THE_TEST": secret, "PROXY_OF_THE_TEST": "user:sk-pass@nowhere"}
    )
    assert ended.returncode == 2
    told = "the secret holds a control character, a line break, a character beyond ASCII, or spaces around it"
    places = [line.partition("the secret")[0] for line in ended.stdout.splitlines()]
    expected = [("5", "api_key"), ("6", "proxy")] + ([("7", "headers.X-Other")] if secret.strip() != "sk-q" else [])
    assert sorted(places) == [f"{folder}/headpond.toml:{line}: [models.remote] {key}: " for line, key in expected]
    assert told in ended.stdout
    assert "is no URL that begins with http://" in ended.stdout
    assert "sk-" not in ended.stdout + ended.stderr


def test_a_secret_in_the_file_itself_is_warned_of(folder: Path) -> None:
    secret = ("X-Api-Key", "Proxy-Authorization", "X-Goog-Token", "X-Key", "Client-Secret", "apikey", "X-Auth")
    plain = ("X-Team", "X-Keyboard", "X-Request-Id", "Tokens-Wanted", "User-Agent")
    headers = ", ".join(f'{name} = "sk-abc"' for name in secret + plain)
    (folder / "headpond.toml").write_text(PROXY.replace('X-Team = "red", X-Other = {file = "other.key"}', headers))
    environment = {"KEY_OF_THE_TEST": "sk-q", "PROXY_OF_THE_TEST": "http://user:sk-pass@h"}
    ended = run(folder, "config", "check", environment=environment)
    assert ended.returncode == 0, ended.stdout
    assert ended.stderr.strip().endswith("1 model, no problems, 7 warnings")
    assert [line.split(": by its")[0] for line in ended.stdout.splitlines()] == [
        f"warning: {folder}/headpond.toml:7: [models.remote] headers.{name}" for name in secret
    ]
    assert all('Write {env = "NAME"} or {file = "PATH"}' in line for line in ended.stdout.splitlines())
    assert "sk-" not in ended.stdout + ended.stderr
    found = json.loads(run(folder, "config", "check", "--json", environment=environment).stdout)
    assert found["problems"] == []
    assert [row["model"] for row in found["warnings"]] == ["remote"] * 7


def test_a_name_cannot_steer_the_terminal(folder: Path) -> None:
    (folder / "headpond.toml").write_text('["\\u001b[31m"]\n', encoding="utf-8")
    ended = run(folder, "config", "check")
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "\\x1b" in ended.stdout


def test_the_installed_command_ends_without_a_traceback(tmp_path: Path) -> None:
    ended = subprocess.run(
        [str(HEADPOND), "config", "check"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 2
    assert "--config" in ended.stderr
    assert "Traceback" not in ended.stderr
