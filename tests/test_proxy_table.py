"""The table of a proxy: what is refused before anything is asked of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headpond.errors import ConfigError
from headpond.settings import check_settings
from headpond.tables import OpenAIModel, SecretRef
from headpond_workers.supervision.programs import worker

BASE = {"engine": "openai", "base_url": "https://api.example.org/v1", "upstream_model": "m"}


def checked(folder: Path = Path("/x"), **settings: Any) -> OpenAIModel:
    found = check_settings({"models": {"remote": {**BASE, **settings}}}, file=folder / "headpond.toml")
    model = found.model("remote")
    assert isinstance(model, OpenAIModel)
    return model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "ftp://api.example.org"}, "http:// or https://"),
        ({"base_url": "api.example.org/v1"}, "http:// or https://"),
        ({"base_url": "https:///v1"}, "name a host"),
        ({"base_url": "https://api.example.org:0/v1"}, "name a host"),
        ({"base_url": "https://api.example.org:x/v1"}, "is not a URL"),
        ({"base_url": "https://user@api.example.org/v1"}, "holds credentials"),
        ({"base_url": "https://user:hunter2@api.example.org/v1"}, "holds credentials"),
        ({"base_url": "https://api.example.org/v1?key=hunter2"}, "no query"),
        ({"base_url": "https://api.example.org/v1\n"}, "printable ASCII"),
        ({"base_url": "https://api.ex\u0430mple.org/v1"}, "printable ASCII"),
        ({"api_key": "hunter2"}, "a secret is a reference"),
        ({"proxy": "http://user:hunter2@proxy:1"}, "holds a password"),
        ({"proxy": "socks5://proxy:1"}, "http:// or https://"),
        ({"headers": {"X-A": "a\r\nX-B: b"}}, "printable ASCII"),
        ({"headers": {"X A": "a"}}, "headers"),
        ({"headers": {"X-A\n": "a"}}, "headers"),
        ({"headers": {"Authorization": "hunter2"}}, "api_key"),
        ({"headers": {"X-A": "a", "x-a": "b"}}, "twice"),
        ({"headers": {f"X-{n}": "a" for n in range(33)}}, "headers"),
        ({"upstream_model": "a\x1b[31m"}, "printable ASCII"),
        ({"organisation": " a"}, "printable ASCII"),
        ({"sampling": ["top_q"]}, "no field of sampling"),
        ({"sampling": ["temperature"]}, "no field of sampling"),
        ({"resume": "continue", "mode": "completions"}, "leave mode out"),
        ({"resume": "continue", "response_formats": ["json_object"]}, "response_formats needs"),
        ({"backoff_s": 9.0, "max_backoff_s": 1.0}, "is more than max_backoff_s"),
        ({"max_event_bytes": 1 << 30}, "max_event_bytes"),
        ({"apikey": {"env": "A"}}, "did you mean 'api_key'"),
    ],
)
def test_what_cannot_be_right_is_refused_without_repeating_a_password(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(**settings)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_files_are_relative_to_the_one_that_names_them() -> None:
    model = checked(
        api_key={"file": "keys/a"}, proxy={"file": "proxy"}, ca_file="ca.pem",
        headers={"X-A": {"file": "b"}, "X-B": "plain", "X-C": {"env": "C"}},
    )  # fmt: skip
    assert model.api_key == SecretRef(file=Path("/x/keys/a"))
    assert model.proxy == SecretRef(file=Path("/x/proxy"))
    assert model.ca_file == Path("/x/ca.pem")
    assert model.headers == {"X-A": SecretRef(file=Path("/x/b")), "X-B": "plain", "X-C": SecretRef(env="C")}
    assert model.secrets().keys() == {"api_key", "proxy", "headers.X-A", "headers.X-C"}


def test_a_trailing_slash_of_the_address_is_no_difference() -> None:
    assert checked(base_url="https://api.example.org/v1/").base_url == "https://api.example.org/v1"


def test_names_of_sampling_are_the_servers_where_they_differ() -> None:
    assert checked(sampling=["top_k", "min_p"]).sampling == {"top_k": "top_k", "min_p": "min_p"}
    assert checked(sampling={"repetition_penalty": "repeat_penalty"}).sampling["repetition_penalty"] == "repeat_penalty"


def test_a_worker_sees_the_variables_of_its_own_table_alone() -> None:
    models = {
        "one": {**BASE, "api_key": {"env": "KEY_ONE"}, "headers": {"X-A": {"env": "HEADER_ONE"}}},
        "two": {**BASE, "api_key": {"env": "KEY_TWO"}, "proxy": {"env": "PROXY_TWO"}},
    }
    settings = check_settings({"models": models}, file=Path("/x/headpond.toml"))
    assert set(worker(settings, "one", 0).allow) == {"KEY_ONE", "HEADER_ONE"}
    assert set(worker(settings, "two", 0).allow) == {"KEY_TWO", "PROXY_TWO"}
