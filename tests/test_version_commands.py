"""`headpond models push`, `versions`, `show`, `diff` and `history`, as a person or a script runs them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headpond.cli import exits
from headpond.cli.app import build_app
from headpond.errors import HeadpondError
from headpond_workers.checkpoints.alias_document import MAX_HISTORY, AliasDocument, Cause, Trial
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.description import engine_of_files
from headpond_workers.checkpoints.names import alias_key, version_key
from headpond_workers.checkpoints.registry import new_txn, now_ms
from headpond_workers.storage.s3 import S3Blobs
from headpond_workers.storage.settings import StorageAddress
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from pushed_versions import registry_on
from stored_versions import put_version
from tiny_weights import gguf, noise, safetensors, write_model

KIB = 1 << 10
HEADPOND = (sys.executable, "-c", "from headpond.cli import main; main()")
TABLE = """
[models.chat]
engine = "scripted"
context_tokens = 4096
slots = 8
version_wait_s = 7
"""


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


@dataclass
class Shell:
    """A folder with a headpond.toml, and the commands that are run there."""

    folder: Path
    blobs: S3Blobs

    def run(self, *arguments: str) -> Ended:
        result = CliRunner().invoke(build_app(), ["models", *arguments])
        if isinstance(result.exception, HeadpondError):
            return Ended(exits.exit_code(result.exception), result.stdout, f"{result.stderr}{result.exception}\n")
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return Ended(result.exit_code, result.stdout, result.stderr)

    def json(self, *arguments: str) -> dict[str, object]:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found


@pytest.fixture
def shell(seaweed: SeaweedProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    bucket = f"b{os.urandom(6).hex()}"
    for name, value in (("access", seaweed.access_key), ("secret", seaweed.secret_key)):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(value)
    (tmp_path / "headpond.toml").write_text(
        f'[storage]\nendpoint_url = "{seaweed.url}"\nbucket = "{bucket}"\nregion = "{seaweed.region}"\n'
        f'access_key = {{file = "access"}}\nsecret_key = {{file = "secret"}}\n{TABLE}'
    )
    address = StorageAddress(seaweed.url, bucket, seaweed.region, seaweed.access_key, seaweed.secret_key, "the test")
    return Shell(tmp_path, S3Blobs(address))


def name_it(shell: Shell, alias: str, number: int) -> None:
    document = AliasDocument(
        txn=new_txn(), created_ms=now_ms(), writer="w", model="chat", alias=alias, to=number, previous=0, seq=1
    )
    shell.blobs.put_new(alias_key("chat", alias), document.pack())


@pytest.mark.slow
def test_a_model_is_pushed_changed_and_looked_at(shell: Shell) -> None:
    tensors = {f"t{n}": noise(n, 100 * KIB) for n in range(20)}
    model = write_model(shell.folder / "weights", tensors)
    (model / ".gitattributes").touch()
    done = shell.run("push", "chat", "weights", "--note", "first \x1b[31m try")
    assert (done.returncode, done.stdout) == (0, "chat@1\n")
    assert "\x1b" not in done.stderr
    told = done.stderr.splitlines()
    assert told[0] == "chat: hashing 2.0 MiB"
    assert told[1].startswith("chat: sending 2.0 MiB")
    assert told[2] == "left out, since no loader reads hidden files: .gitattributes"
    assert re.fullmatch(r"chat@1: 2\.0 MiB in 2 files, 2\.0 MiB of it new, 2\.0 MiB sent, .* [KM]iB/s", told[3])

    again = shell.run("push", "chat", "weights")
    assert (again.returncode, again.stdout) == (0, "chat@1\n")
    assert "chat@1 has these very files; nothing was sent" in again.stderr

    write_model(model, tensors | {"t7": noise(70, 100 * KIB)})
    (model / "config.json").unlink()
    (model / "tokenizer.json").write_text("{}")
    second = shell.json("push", "chat", "weights", "--engine", "llamacpp")
    assert second["version"] == "chat@2"
    assert (second["how"], second["parent"]) == ("new", 1)
    assert 100 * KIB < int(str(second["sent_bytes"])) < 105 * KIB

    name_it(shell, "prod", 2)
    name_it(shell, "old", 1)
    table = shell.run("versions", "chat")
    assert table.returncode == 0
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["version", "state", "size", "files", "when", "who", "aliases", "note"]
    assert re.search(r"^ +1 +complete +2\.0 MiB +2 .*@.* old +first \\x1b\[31m try", lines[1])
    assert re.search(r"^ +2 +complete .* prod *$", lines[2])
    listed = shell.json("versions", "chat")["versions"]
    assert [(v["number"], v["state"], v["aliases"]) for v in listed] == [  # type: ignore[index,attr-defined]
        (1, "complete", ["old"]),
        (2, "complete", ["prod"]),
    ]

    shown = shell.json("show", "chat@prod")
    assert shown == shell.json("show", "chat") == shell.json("show", "chat@2")
    assert shown["digest"] == second["digest"]
    assert 1900 * KIB < int(str(shown["shared_with_parent_bytes"])) < 1905 * KIB
    assert [file["path"] for file in shown["file_list"]] == ["model.safetensors", "tokenizer.json"]  # type: ignore[index,attr-defined]
    text = shell.run("show", "chat@2").stdout
    assert str(second["digest"]) in text
    assert re.search(r"parent +1, which has 1\.9 MiB \(9\d\.\d %\) of it too", text)

    difference = shell.json("diff", "chat", "old", "2")
    assert [(f["path"], f["change"], f["differing_bytes"]) for f in difference["files"]] == [  # type: ignore[index,attr-defined]
        ("config.json", "removed", len('{"model_type": "llama", "vocab_size": 100}')),
        ("model.safetensors", "changed", 100 * KIB),
        ("tokenizer.json", "added", 2),
    ]
    assert {p["key"]: (p["old"], p["new"]) for p in difference["parameters"]} == {  # type: ignore[index,attr-defined]
        "engine": ("scripted", "llamacpp"),
        "context_tokens": ("4096", None),
    }
    text = shell.run("diff", "chat", "1", "2").stdout
    assert re.search(r"model\.safetensors +changed +2\.0 MiB +2\.0 MiB +100 KiB", text)
    assert re.search(r"engine +scripted +llamacpp", text)
    assert "chat@2 has 100 KiB that chat@1 has not." in text
    assert "same files" in shell.run("diff", "chat", "2", "2").stdout


@pytest.mark.slow
def test_errors_say_what_to_do_and_their_codes_tell_them_apart(shell: Shell) -> None:
    model = write_model(shell.folder / "weights", {"a": noise(1, KIB)})
    (model / "pytorch_model.bin").touch()
    refused = shell.run("push", "chat", "weights")
    assert refused.returncode == 1
    assert "may be a pickle" in refused.stderr
    (model / "pytorch_model.bin").unlink()
    wrong = shell.run("push", "Chat", "weights")
    assert (wrong.returncode, "cannot name a model" in wrong.stderr) == (2, True)
    none = shell.run("versions", "chat")
    assert (none.returncode, none.stdout) == (0, "")
    assert "headpond models push chat PATH" in none.stderr
    assert shell.json("versions", "chat") == {"model": "chat", "versions": [], "unreadable": []}
    for missing in ("chat@7", "chat@prod"):
        done = shell.run("show", missing)
        assert done.returncode == 1
        assert "headpond models" in done.stderr
    assert shell.run("push", "chat", "weights").returncode == 0
    registry_on(shell.blobs).quarantine(1, reason="a chunk is damaged")
    damaged = shell.run("show", "chat@1")
    assert damaged.returncode == 1
    assert "quarantined: a chunk is damaged" in damaged.stderr
    assert "quarantined" in shell.run("versions", "chat").stdout
    shell.blobs.put_new(version_key("chat", 2), b"no document")
    assert shell.run("push", "chat", "weights").stdout == "chat@3\n", "it stands in nobody's way"
    listed = shell.run("versions", "chat")
    assert len(listed.stdout.splitlines()) == 3
    assert "versions/0000000002" in listed.stderr
    assert shell.json("versions", "chat")["unreadable"] == [version_key("chat", 2)]


def aliases_of(shell: Shell, *numbers: int) -> Aliases:
    """Of `chat`, which then has these versions."""
    shell.blobs.ensure_bucket()
    for number in numbers:
        put_version(shell.blobs, "chat", {"config.json": f"{{{number}}}".encode()}, number=number)
    return Aliases(registry_on(shell.blobs))


@pytest.mark.slow
def test_every_change_of_an_alias_is_shown_the_newest_first(shell: Shell) -> None:
    aliases = aliases_of(shell, 1, 2, 3)
    aliases.move("prod", to=1, left=None, who="ann@mill", note="first")
    aliases.move("prod", to=2, left=1, who="bob@mill", note="better \x1b[31m answers")
    aliases.begin_trial("prod", Trial(3, 125, now_ms()), who="ann@mill")
    aliases.rollback("prod", left=2, who="chat-0", note="no memory", cause=Cause.AUTOMATIC)
    aliases.move("next", to=3, left=None, who="cy@mill")

    found = shell.json("history", "chat")
    assert {key: found[key] for key in ("name", "alias", "version", "previous", "seq", "trial")} == {
        "name": "chat", "alias": "prod", "version": 1, "previous": 0, "seq": 4, "trial": None,
    }  # fmt: skip
    moves = found["moves"]
    assert isinstance(moves, list)
    assert [(m["seq"], m["from"], m["to"], m["cause"], m["who"], m["note"]) for m in moves] == [
        (4, 2, 1, "automatic", "chat-0", "no memory"),
        (3, 2, 2, "canary", "ann@mill", ""),
        (2, 1, 2, "promote", "bob@mill", "better \x1b[31m answers"),
        (1, 0, 1, "promote", "ann@mill", "first"),
    ]
    stored = aliases.get("prod")
    assert stored is not None
    assert [m["at_ms"] for m in moves] == [move.at_ms for move in reversed(stored.document.history)]

    lines = shell.run("history", "chat").stdout.splitlines()
    assert lines[0] == "chat@prod names version 1"
    assert lines[1].split() == ["seq", "from", "to", "cause", "when", "who", "note"]
    assert re.fullmatch(r" +4 +2 +1 +automatic +[-\d]{10} [:\d]{8} UTC +chat-0 +no memory *", lines[2])
    assert re.search(r"^ +2 +1 +2 +promote .* bob@mill +better \\x1b\[31m answers", lines[4])
    assert re.search(r"^ +1 +- +1 +promote .* ann@mill +first", lines[5])
    assert len(lines) == 6

    other = shell.run("history", "chat", "--alias", "next").stdout
    assert "chat@next names version 3" in other
    assert "cy@mill" in other
    aliases.begin_trial("next", Trial(2, 100, now_ms()), who="cy@mill")
    assert (
        "chat@next names version 3; 10 % of the jobs try version 2"
        in shell.run("history", "chat", "--alias", "next").stdout
    )


@pytest.mark.slow
def test_a_long_history_says_how_many_changes_are_no_longer_kept(shell: Shell) -> None:
    aliases = aliases_of(shell, 1, 2)
    for n in range(MAX_HISTORY + 2):
        aliases.move("prod", to=1 + n % 2, left=None, who="ann@mill")
    moves = shell.json("history", "chat")["moves"]
    assert [move["seq"] for move in moves] == list(range(MAX_HISTORY + 2, 2, -1))  # type: ignore[index,attr-defined]
    assert shell.run("history", "chat").stdout.splitlines()[-1] == "2 older changes are no longer kept."


@pytest.mark.slow
def test_an_alias_that_names_nothing_any_more_still_has_its_history(shell: Shell) -> None:
    aliases = aliases_of(shell, 1)
    aliases.begin_trial("next", Trial(1, 100, now_ms()), who="ann@mill", note="a look")
    aliases.end_trial("next", version=1, who="ann@mill", note="seen enough")
    assert aliases.get("next") is None
    lines = shell.run("history", "chat", "--alias", "next").stdout.splitlines()
    assert lines[0] == "chat@next names no version"
    assert [line.split()[:4] for line in lines[2:]] == [["2", "-", "-", "canary"], ["1", "-", "-", "canary"]]
    assert "seen enough" in lines[2]


@pytest.mark.slow
def test_the_history_of_what_is_not_there_is_an_error_that_says_what_is(shell: Shell) -> None:
    aliases = aliases_of(shell)
    none = shell.run("history", "chat")
    assert (none.returncode, none.stdout) == (1, "")
    assert "chat@prod: storage has no version of a model 'chat'" in none.stderr
    assert "headpond models push chat PATH" in none.stderr
    aliases_of(shell, 1)
    unmoved = shell.run("history", "chat", "--json")
    assert (unmoved.returncode, unmoved.stdout) == (1, "")
    assert "never moved. Aliases of chat: none. Let it name a version with: headpond models promote chat" in (
        unmoved.stderr
    )
    aliases.move("prod", to=1, left=None, who="ann@mill")
    unknown = shell.run("history", "chat", "--alias", "staging")
    assert unknown.returncode == 1
    assert "chat@staging: this alias was never moved. Aliases of chat: prod." in unknown.stderr
    for words in (("Chat",), ("chat", "--alias", "3")):
        wrong = shell.run("history", *words)
        assert (wrong.returncode, "cannot name" in wrong.stderr) == (2, True), wrong


def test_the_help_of_history_has_an_example(shell: Shell) -> None:
    assert "headpond models history chat --alias staging" in shell.run("history", "--help").stdout


def test_without_storage_or_configuration_the_command_says_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path, None)  # type: ignore[arg-type]
    write_model(tmp_path / "weights", {"a": noise(1, KIB)})
    done = shell.run("push", "chat", "weights")
    assert done.returncode == 2
    assert "headpond.toml" in done.stderr
    (tmp_path / "headpond.toml").write_text('[models.chat]\nengine = "scripted"\n')
    done = shell.run("push", "chat", "weights")
    assert done.returncode == 2
    assert "no storage" in done.stderr
    (tmp_path / "headpond.toml").write_text(
        '[storage]\nendpoint_url = "http://127.0.0.1:9"\n[models.x]\nengine = "?"\n'
    )
    done = shell.run("push", "chat", "weights")
    assert done.returncode in (2, 3), "keys or server are missing; the wrong table of another model is no matter"
    assert "models.x" not in done.stderr


@pytest.mark.slow
def test_a_terminal_sees_a_bar_with_the_rate(shell: Shell) -> None:
    write_model(shell.folder / "weights", {f"t{n}": noise(n, 5 << 20) for n in range(4)})
    reader, writer = pty.openpty()
    with subprocess.Popen(
        [*HEADPOND, "models", "push", "chat", "weights"],
        cwd=shell.folder, stdout=subprocess.PIPE, stderr=writer, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:  # fmt: skip
        os.close(writer)
        seen = b""
        while True:
            try:
                part = os.read(reader, 1 << 16)
            except OSError:  # the process has left
                break
            if not part:
                break
            seen += part
    os.close(reader)
    assert process.returncode == 0
    assert "━".encode() in seen
    assert b"chat: sending" in seen
    assert b"/s" in seen


@pytest.mark.parametrize(
    ("files", "engine"),
    [
        ({"model.gguf": gguf({"a": bytes(4)})}, "llamacpp"),
        ({"config.json": b"{}", "model.safetensors": safetensors({"a": b"x"})}, "exllamav2"),
        ({"config.json": b'{"quantization_config": {"quant_method": "exl2"}}', "m.safetensors": b""}, "exllamav2"),
        ({"config.json": b'{"quantization_config": {"quant_method": "exl3"}}', "m.safetensors": b""}, "exllamav3"),
        ({"config.json": b'{"quantization_config": {"quant_method": "awq"}}', "m.safetensors": b""}, None),
        ({"config.json": b"{}"}, None),
        ({"scripted.json": b"{}"}, None),
    ],
    ids=["gguf", "plain", "exl2", "exl3", "awq", "no-weights", "something-else"],
)
def test_the_engine_is_told_from_the_files(tmp_path: Path, files: dict[str, bytes], engine: str | None) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert engine_of_files(tmp_path) == engine
