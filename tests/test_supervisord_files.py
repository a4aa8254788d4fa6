"""Whatever a value holds, supervisord's own parser reads it back as it was, or the value was refused."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.errors import DeploymentError
from headpond_workers.supervision import programs
from headpond_workers.supervision.launcher import Launch, parse
from headpond_workers.supervision.programs import Program
from test_supervision import parsed_by_supervisord

HOSTILE = st.sampled_from(
    ["%", "%(here)s", "%(ENV_HOME)s", "%%", "'", '"', ";", "#", " ;", " #", "\u00a0;", "\u3000#", "\n", "\r", "\t",
     "\\", "\x85", "\u2028", "\x0b", "=", ",", "[", "]", " ", "ü", "€", "\U0001f600", "$HOME", "`", "\x00", "\ud800",
     "a", "B", "--"]
)  # fmt: skip
words = st.lists(HOSTILE | st.text(max_size=3), max_size=8).map("".join)
non_empty = words.filter(bool)


@settings(max_examples=150, deadline=None)
@given(
    arguments=st.lists(words, max_size=4),
    allow=st.lists(non_empty, max_size=3),
    prefixes=st.lists(non_empty, max_size=2),
    deny=st.lists(non_empty, max_size=3),
)
def test_a_command_line_is_read_as_it_was_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    arguments: list[str],
    allow: list[str],
    prefixes: list[str],
    deny: list[str],
) -> None:
    program = Program(
        name="chat-0", argv=("/bin/worker", *arguments), priority=1, stop_wait_s=1, allow=tuple(allow),
        allow_prefixes=tuple(prefixes), deny=tuple(deny), digest="0a",
    )  # fmt: skip
    folder = tmp_path_factory.getbasetemp() / "files"
    try:
        config = parsed_by_supervisord(folder, program)["chat-0"]
    except DeploymentError:
        # Only what no line of a file can hold.
        every = "".join([*arguments, *allow, *prefixes, *deny])
        assert any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in every)
        return
    read = shlex.split(config.command)
    at = read.index("headpond_workers.supervision.launcher")
    if "--" in (*allow, *prefixes, *deny):
        return  # The launcher refuses these: see test_arguments_that_say_nothing_sensible_are_refused.
    launch = parse(read[at + 1 :])
    assert launch == Launch(
        ("/bin/worker", *arguments), frozenset(allow), tuple(prefixes), frozenset(deny), False, Path("starts/chat-0")
    )
    # Nothing else of the file was changed by what a value holds.
    assert config.name == "chat-0"
    assert config.environment == {"HEADPOND_SETTINGS_DIGEST": "0a"}
    assert config.stdout_logfile == "logs/chat-0.log"
    assert config.stopwaitsecs == 1


@settings(max_examples=100, deadline=None)
@given(name=non_empty, variable=non_empty, value=words)
def test_a_name_or_plain_value_is_read_as_it_was_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, variable: str, value: str
) -> None:
    program = Program(
        name=name, argv=("/bin/worker",), priority=1, stop_wait_s=1, environment={variable: value}, digest="0a"
    )
    folder = tmp_path_factory.getbasetemp() / "names"
    for old in folder.glob("conf.d/*"):
        old.unlink()
    try:
        text = programs.render(program)
    except DeploymentError:
        return
    assert "\n[" not in text
    config = parsed_by_supervisord(folder, program)[name]
    assert config.environment == {variable: value, "HEADPOND_SETTINGS_DIGEST": "0a"}


@pytest.mark.parametrize("name", ["a]\n[program:b", "a b", "a:b", "a;b", "a%s", "", "-a", "a\n", "ü"])
def test_a_name_that_could_be_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(DeploymentError, match="cannot name anything"):
        programs.render(Program(name=name, argv=("x",), priority=1, stop_wait_s=1))


@settings(max_examples=100, deadline=None)
@given(socket=words, folder=words)
def test_supervisords_own_file_takes_no_setting_from_a_path(socket: str, folder: str) -> None:
    try:
        text = programs.supervisord_conf(socket=Path(f"/run/{socket}"), state_folder=Path(f"/srv/{folder}"))
    except DeploymentError:
        return
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[unix_http_server]", "[supervisord]", "[rpcinterface:supervisor]", "[include]",
    ]  # fmt: skip
    assert lines[2].removeprefix("file=") == str(Path(f"/run/{socket}"))
