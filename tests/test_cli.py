"""The producer's commands, run as a person or a script runs them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import Deployment, eventually
from headpond.models import ModelRow
from headpond.terminal import escape_controls
from headpond.wire import unpack_data

HEADPOND = Path(sys.executable).with_name("headpond")
MODEL = """
[models.chat]
engine = "scripted"
tokens_per_s = 500
answer_tokens = 30
[models.slow]
engine = "scripted"
tokens_per_s = 20
answer_tokens = 400
"""


def run(
    *arguments: str, cwd: Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADPOND_")}
    return subprocess.run(
        [str(HEADPOND), *arguments], cwd=cwd, input=stdin, capture_output=True, timeout=60, env=clean | (env or {}),
        check=False,
    )  # fmt: skip


def said(finished: subprocess.CompletedProcess[bytes]) -> str:
    """What a person was told. Never a traceback."""
    text = finished.stderr.decode()
    assert "Traceback" not in text
    assert "Traceback" not in finished.stdout.decode(errors="replace")
    return text


@pytest.fixture
def serving(deployment: Deployment) -> Deployment:
    deployment.configure(MODEL)
    deployment.start("chat", "chat-0")
    return deployment


@pytest.fixture
def configured(deployment: Deployment) -> Deployment:
    """Two models are configured, and no worker is alive."""
    deployment.configure(MODEL)
    server = deployment.server()
    for name in ("chat", "slow"):
        server.configure_model(name, ModelRow("scripted", 0, False, 8192))
    return deployment


def test_submit_streams_text_and_prints_the_id_beside_it(serving: Deployment) -> None:
    done = run("submit", "chat", "hello", "--seed", "3", cwd=serving.folder)
    assert done.returncode == 0
    job_id = said(done).strip()
    assert job_id.startswith("chat/")
    again = run("result", job_id, cwd=serving.folder)
    assert again.stdout == done.stdout
    assert len(done.stdout.split()) > 10


def test_submit_as_json_gives_one_result_object(serving: Deployment) -> None:
    done = run(
        "submit", "chat", "hello", "--json", "--max-tokens", "7", "--temperature", "0.5", "--top-p", "0.9", "--seed",
        "1", "--id", "chat/mine", cwd=serving.folder,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert done.returncode == 0
    assert result["id"] == "chat/mine"
    assert result["finish_reason"] == "length"
    assert len(result["token_ids"]) == result["usage"]["completion_tokens"] == 7
    assert result["attempts"] == 1
    assert result["durable"] is False


def test_stop_ends_the_answer_before_the_text(serving: Deployment) -> None:
    whole = run("submit", "chat", "hello", "--seed", "3", cwd=serving.folder).stdout.decode()
    word = whole.split()[4]
    cut = run("submit", "chat", "hello", "--seed", "3", "--stop", word, "--json", cwd=serving.folder)
    result = json.loads(cut.stdout)
    assert result["finish_reason"] == "stop"
    assert result["text"] == whole[: whole.index(word)]


def test_a_prompt_can_come_from_stdin(serving: Deployment) -> None:
    typed = run("submit", "chat", "hello", "--seed", "3", cwd=serving.folder)
    piped = run("submit", "chat", "-", "--seed", "3", cwd=serving.folder, stdin=b"hello")
    assert piped.returncode == 0
    assert piped.stdout == typed.stdout


def test_detach_prints_the_id_and_watch_follows_from_any_token(serving: Deployment) -> None:
    detached = run("submit", "chat", "hello", "--detach", cwd=serving.folder)
    job_id = detached.stdout.decode().strip()
    watched = run("watch", job_id, "--json", cwd=serving.folder)
    *chunks, result = [json.loads(line) for line in watched.stdout.splitlines()]
    ids = [i for chunk in chunks for i in chunk["token_ids"]]
    assert ids == result["token_ids"]
    rest = run("watch", job_id, "--json", "--after", "12", cwd=serving.folder)
    *chunks, _ = [json.loads(line) for line in rest.stdout.splitlines()]
    assert chunks[0]["offset"] == 12
    assert [i for chunk in chunks for i in chunk["token_ids"]] == ids[12:]


def test_cancel_ends_a_job_and_its_watcher_hears_of_it(serving: Deployment) -> None:
    serving.start("slow", "slow-0")
    job_id = run("submit", "slow", "hello", "--detach", cwd=serving.folder).stdout.decode().strip()
    watcher = subprocess.Popen(
        [str(HEADPOND), "watch", job_id], cwd=serving.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    queue = serving.queue("slow")
    eventually(lambda: (row := queue.run_row(job_id)) is not None and row.offset > 3, what="four tokens")
    cancelled = run("cancel", job_id, "--json", cwd=serving.folder)
    assert json.loads(cancelled.stdout) == {"id": job_id, "state": "cancelled"}
    out, err = watcher.communicate(timeout=30)
    assert watcher.returncode == 5
    assert b"was cancelled after" in err
    assert b"Traceback" not in err
    assert len(out.split()) >= 3


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (["submit", "chatt", "hi"], b"", 2, ["chatt", "chat, slow"]),
        (["submit", "chat", ""], b"", 2, ["empty"]),
        (["submit", "chat", "-"], b"", 2, ["empty"]),
        (["submit", "chat", "-"], b"caf\xe9", 2, ["not UTF-8", "byte 3", "0xe9"]),
        (["submit", "chat", "-"], b"x" * (1 << 20), 2, ["1048576", "bytes"]),
        (["submit", "chat", "-"], "é".encode() * (1 << 20), 2, ["bytes"]),
        (["submit", "chat", "hi", "--max-tokens", "-3"], b"", 2, ["max_tokens"]),
        (["submit", "chat", "hi", "--temperature", "-1"], b"", 2, ["temperature"]),
        (["submit", "chat", "hi", "--id", "slow/x"], b"", 2, ["slow", "chat/x"]),
        (["submit", "chat", "hi", "--max-tokens", "many"], b"", 2, ["--max-tokens"]),
        (["embed", "chat", ""], b"", 2, ["input.0: give a text; this one is empty"]),
        (["embed", "chat"], b"", 2, ["give a text: as an argument, or a line each on stdin; stdin is empty"]),
        (["embed", "chat"], b"\n", 2, ["stdin is empty"]),
        (["embed", "chat"], b"a\n\nb\n", 2, ["input.1: give a text; this one is empty"]),
        (["submit", "chat", "hi", "--sampling", "top_n_sigma=1e-300"], b"", 2, ["too near to 0", "1e-30"]),
        (["watch", "nonsense"], b"", 2, ["<model>/<slug>"]),
        (["result", "chat/never"], b"", 4, ["does not hold", "--from-storage"]),
        (["watch", "chat/never"], b"", 4, ["does not hold"]),
        (["cancel", "chat/never"], b"", 4, ["does not hold"]),
        (["nonsense"], b"", 2, ["nonsense"]),
    ],
)
def test_bad_input_is_refused_plainly_and_nothing_is_enqueued(
    configured: Deployment, arguments: Sequence[str], stdin: bytes, code: int, words: Sequence[str]
) -> None:
    done = run(*arguments, cwd=configured.folder, stdin=stdin)
    told = said(done)
    assert done.returncode == code, told
    for word in words:
        assert word in told
    assert configured.queue("chat").ids() == []


def test_a_prompt_that_is_not_unicode_is_refused(serving: Deployment) -> None:
    done = subprocess.run(
        [bytes(HEADPOND), b"submit", b"chat", b"caf\xe9"],
        cwd=serving.folder,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "not valid Unicode" in said(done)


def test_a_prompt_longer_than_the_context_fails_with_both_numbers_and_the_worker_lives(serving: Deployment) -> None:
    done = run("submit", "chat", "-", cwd=serving.folder, stdin=b"x" * 9000)
    told = said(done)
    assert done.returncode == 5
    assert "8192" in told
    assert "90" in told
    assert run("submit", "chat", "hi", cwd=serving.folder).returncode == 0


def seconds_to_start(folder: Path) -> float:
    """What any command takes here and now, before it waits for anything."""
    began = time.monotonic()
    assert run("--version", cwd=folder).returncode == 0
    return time.monotonic() - began


def test_a_server_that_is_not_there_is_named_with_where_it_is_configured_within_five_seconds(tmp_path: Path) -> None:
    (tmp_path / "headpond.toml").write_text(
        '[redis]\nurl = "redis://127.0.0.1:1/0"\npassword = {env = "REDIS_SECRET"}\n'
    )
    start_s = seconds_to_start(tmp_path)
    began = time.monotonic()
    done = run("submit", "chat", "hi", cwd=tmp_path, env={"REDIS_SECRET": "hunter2secret"})
    took_s = time.monotonic() - began
    told = said(done)
    assert done.returncode == 3
    assert "redis://127.0.0.1:1/0" in told
    assert str(tmp_path / "headpond.toml") in told
    assert "hunter2" not in told
    assert took_s - start_s < 5


def test_a_storage_that_is_not_there_is_named_with_where_it_is_configured_within_five_seconds(tmp_path: Path) -> None:
    (tmp_path / "headpond.toml").write_text(
        '[storage]\nendpoint_url = "http://127.0.0.1:1"\naccess_key = {env = "K"}\nsecret_key = {env = "K"}\n'
    )
    start_s = seconds_to_start(tmp_path)
    began = time.monotonic()
    done = run("result", "chat/x", "--from-storage", cwd=tmp_path, env={"K": "hunter2secret"})
    took_s = time.monotonic() - began
    told = said(done)
    assert done.returncode == 3
    assert "http://127.0.0.1:1" in told
    assert str(tmp_path / "headpond.toml") in told
    assert "hunter2secret" not in told
    assert took_s - start_s < 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[models.chat]\nengine = 'scripted'\n[models.chat]\nengine = 'scripted'\n", ["line 3"]),
        ("[models.Chat]\nengine = 'scripted'\n", ["models.Chat", "small letter"]),
        ("[models.chat]\nengine = 'scripted'\nslotz = 4\n", ["slotz", "slots"]),
        ("[model.chat]\nengine = 'scripted'\n", ["model", "models"]),
        ("[models.chat]\nengine = 'scriptd'\n", ["scriptd", "scripted"]),
        ("[models.chat\n", ["line 1"]),
        ('[redis]\nurl = "redis://:hunter2@localhost/0"\n', ["password", "{env ="]),
    ],
)
def test_a_configuration_error_names_the_file_the_key_and_the_nearest_name(
    tmp_path: Path, text: str, words: Sequence[str]
) -> None:
    config = tmp_path / "headpond.toml"
    config.write_text(text)
    done = run("up", "--detach", cwd=tmp_path)
    told = said(done)
    assert done.returncode == 2, told
    assert str(config) in told
    for word in words:
        assert word in told


def test_every_command_refuses_a_wrong_configuration(tmp_path: Path) -> None:
    config = tmp_path / "headpond.toml"
    config.write_text("[modles]\n")
    for command in (["up"], ["status"], ["submit", "chat", "hi"], ["worker", "chat"], ["result", "chat/x"]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode in (2, 78)
        assert "did you mean 'models'" in said(done)


def test_no_configuration_anywhere_says_what_to_do(tmp_path: Path) -> None:
    for command in (["submit", "chat", "hi"], ["up"], ["status"], ["worker", "chat"], ["persister"]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 2
        assert "headpond.toml" in said(done)
    for command in (["submit", "chat", "hi"], ["fsck"], ["dead", "list"]):
        told = said(run(*command, cwd=tmp_path))
        # No path of a file that is not there.
        assert told.startswith(f"headpond: {tmp_path}: no Redis is configured: there is no headpond.toml here")


def test_groups_of_commands_have_examples(tmp_path: Path) -> None:
    for group, example in (("config", "headpond config check\n"), ("models", "headpond models list\n")):
        done = run(group, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert "Examples:" in done.stdout.decode()
        assert example in done.stdout.decode()


def test_what_the_catalogue_lacks_is_wrong_input(tmp_path: Path) -> None:
    for source in ("chat", "smollm2-135m:Q9_0"):
        done = run("models", "prepare", source, cwd=tmp_path)
        assert done.returncode == 2
        assert "Known sources: smollm2-135m:Q8_0" in said(done)


def test_every_command_has_help_with_an_example(tmp_path: Path) -> None:
    for command in (
        "submit",
        "embed",
        "watch",
        "result",
        "cancel",
        "sessions",
        "dead",
        "fsck",
        "replay",
        "verify",
        "up",
        "down",
        "status",
        "logs",
        "scale",
        "worker",
        "persister",
    ):
        done = run(command, "--help", cwd=tmp_path)
        assert done.returncode == 0
        assert "xample" in done.stdout.decode()


def test_sampling_and_the_form_of_an_answer_reach_the_request(configured: Deployment) -> None:
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": True}}
    (configured.folder / "place.json").write_text(json.dumps(schema, indent=4))
    (configured.folder / "format.json").write_text(json.dumps({"type": "json_object"}))
    (configured.folder / "answer.gbnf").write_text('root ::= "yes" | "no"')
    more = {
        ("--json-schema", "place.json"): {
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}
        },
        ("--response-format", "format.json"): {"response_format": {"type": "json_object"}},
        ("--response-format", "json"): {"response_format": {"type": "json_object"}},
        ("--grammar", "answer.gbnf"): {"grammar": 'root ::= "yes" | "no"'},
        ("--sampling", "top_k=40", "--sampling", 'logit_bias={"7": -5}', "--sampling", "min_p=0.5"): {
            "sampling": {"top_k": 40, "logit_bias": {"7": -5.0}, "min_p": 0.5}
        },
    }
    for options, wanted in more.items():
        done = run("submit", "chat", "hello", *options, "--detach", cwd=configured.folder)
        assert done.returncode == 0, said(done)
        data = configured.queue("chat").data(done.stdout.decode().strip())
        assert data is not None
        asked = unpack_data(data).kwargs["request"]
        assert {key: value for key, value in asked.items() if key != "prompt"} == wanted


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sampling", "top_k"], "write KEY=VALUE"),
        (["--sampling", "topk=4"], "did you mean top_k"),
        (["--sampling", "seed=4"], "has an option, --seed"),
        (["--sampling", "top_k=x"], "is not JSON"),
        (["--sampling", "top_k=1", "--sampling", "top_k=2"], "given twice"),
        (["--sampling", "top_k=-1"], "sampling.top_k"),
        (["--sampling", "logit_bias=[1]"], "sampling.logit_bias"),
        (["--sampling", "top_k=1" + "0" * 400], "sampling.top_k"),
        (["--json-schema", "none.json"], "No such file"),
        (["--json-schema", "broken.json"], "not JSON"),
        (["--json-schema", "list.json"], "a JSON object is wanted"),
        (["--json-schema", "latin.json"], "iconv"),
        (["--json-schema", "huge.json"], "more than 1048576 bytes"),
        (["--json-schema", "."], "Is a directory"),
        (["--response-format", "whole.json"], "response_format"),
        (["--response-format", "json", "--grammar", "whole.json"], "give one of --response-format and --grammar"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_in_words(
    configured: Deployment, options: list[str], told: str
) -> None:
    for name, content in {
        "broken.json": b"{",
        "list.json": b"[]",
        "latin.json": '{"a": "\u00e9"}'.encode("latin-1"),
        "huge.json": b" " * (1 << 20) + b"{}",
        "whole.json": b'{"type": "banana"}',
    }.items():
        (configured.folder / name).write_bytes(content)
    before = configured.queue("chat").ids()
    done = run("submit", "chat", "hello", *options, cwd=configured.folder)
    assert done.returncode == 2
    assert told in said(done)
    assert configured.queue("chat").ids() == before


def test_output_that_is_cut_off_ends_the_command_quietly(serving: Deployment) -> None:
    command = f"{HEADPOND} submit chat hello --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["/bin/bash", "-c", command], cwd=serving.folder, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["config", "show", "--json"], ["dead", "list"]])
def test_output_that_cannot_be_written_is_told_and_is_no_defect(
    configured: Deployment, words: list[str], unbuffered: str
) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADPOND_")}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [str(HEADPOND), *words], cwd=configured.folder, stdout=full, stderr=subprocess.PIPE, timeout=60,
            env={**clean, "PYTHONUNBUFFERED": unbuffered}, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "headpond: The output could not be written: No space left on device. Free some space, or write elsewhere.\n"
    )


@pytest.mark.parametrize("words", [["submit"], ["submit", "--json"]])
def test_whoever_waits_for_a_job_that_nobody_serves_is_told_once_and_waits_on(
    configured: Deployment, words: list[str]
) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HEADPOND_")}
    command = [str(HEADPOND), *words, "chat", "hello", "--seed", "3", "--max-tokens", "5"]
    with subprocess.Popen(
        command, cwd=configured.folder, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        try:
            assert waiting.stderr is not None
            seen: list[str] = []
            for line in waiting.stderr:
                seen.append(line)
                if "right now" in line:
                    break
            assert seen[-1] == (
                "No worker serves 'chat' right now: the job waits for one, and so does this. See: headpond status\n"
            )
            configured.start("chat", "chat-0")
            out, rest = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
    assert waiting.returncode == 0
    assert len(out) > 5
    assert rest == ""


def test_control_characters_are_shown_not_sent() -> None:
    assert escape_controls("a\x1b[2Jb\r\x07\x9b\n\tc\u202e") == "a\\x1b[2Jb\\x0d\\x07\\x9b\n\tc\\u202e"
    assert escape_controls("caf\u00e9 \N{WATER WAVE}") == "caf\u00e9 \N{WATER WAVE}"


def test_a_terminal_gets_escaped_text_and_a_pipe_gets_it_as_it_is(serving: Deployment) -> None:
    script = "from headpond.terminal import write_text; write_text('a\\x1b[31mb')"
    piped = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert piped.stdout == b"a\x1b[31mb"
    master, slave = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", script], stdout=slave, check=True)
        assert os.read(master, 100) == b"a\\x1b[31mb"
    finally:
        os.close(master)
        os.close(slave)
