"""`headpond models promote` and `rollback`, and what `status` and `models list` show of them. On a real deployment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import eventually
from deployment_town import Place, Town, town_of
from headpond.settings import load_settings
from headpond.switching import Switch
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.description import Description
from headpond_workers.checkpoints.pushes.pushing import push
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage
from headpond_workers.rollover.alias_state import AliasState
from headpond_workers.supervision.embedded_seaweed import SeaweedProcess, running_seaweed
from headpond_workers.supervision.embedded_valkey import ValkeyProcess

TABLES = """
[defaults]
lease_s = 2
drain_timeout_s = 5
[models.chat]
engine = "scripted"
source = "s3:chat@prod"
tokens_per_s = 400
[models.fixed]
engine = "scripted"
source = "s3:chat@1"
[models.lone]
engine = "scripted"
source = "s3:chat@staging"
rollover = "side-by-side"
[models.plain]
engine = "scripted"
path = "plain"
"""


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as process:
        yield process


@pytest.fixture
def town(
    valkey: ValkeyProcess, seaweed: SeaweedProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Town]:
    monkeypatch.setenv("HEADPOND_CACHE", str(tmp_path / "cache"))
    with town_of(valkey, seaweed, tmp_path) as town:
        yield town


def placed(town: Town) -> tuple[Place, Registry]:
    """A place whose bucket has two good versions of `chat`, and one that does not load."""
    place = town.place("mill", TABLES)
    (place.folder / "plain").mkdir()
    (place.folder / "plain" / "scripted.json").write_text("{}")
    blobs = open_storage(load_settings(place.config))
    blobs.ensure_bucket()
    registry = Registry(blobs, "chat", writer="a test")
    for number, keys in enumerate(({"salt": "a"}, {"salt": "b"}, {"salt": "c", "fail": "load"}), start=1):
        folder = place.folder / f"v{number}"
        folder.mkdir()
        (folder / "scripted.json").write_text(json.dumps(keys))
        assert push(registry, folder, Description()).number == number
    return place, registry


@pytest.mark.slow
def test_a_deployment_is_promoted_and_rolled_back_by_commands(town: Town) -> None:
    place, registry = placed(town)
    aliases = Aliases(registry)
    aliases.move("prod", to=1, left=None, who="a test")
    aliases.move("staging", to=1, left=None, who="a test")
    place.up()
    pids = place.pids()
    client = town.client()

    done = place.command("models", "promote", "chat", "2", "--note", "better", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["from"], told["alias"], told["trial"]) == (2, 1, "prod", None)
    (model,) = told["models"]
    assert (model["model"], model["ended"]) == ("chat", "served")
    assert [(w["version"], w["state"]) for w in model["workers"]] == [("2", "ready")]
    assert "chat-0 on" in done.stderr
    assert "drains 1" in done.stderr or "loads 2" in done.stderr
    move = aliases.get("prod")
    assert move is not None
    assert move.document.history[-1].note == "better"
    assert "@" in move.document.history[-1].who
    assert client.submit("chat", "Which?", max_tokens=5).result(timeout=30).version == "2"

    # A version that does not load is told loudly, and nothing is worse than before.
    bad = place.command("models", "promote", "chat", "3")
    assert bad.returncode == 1
    assert "VERSION 3 DID NOT LOAD AND WAS ROLLED BACK" in bad.stderr
    assert "fail = load" in bad.stderr
    eventually(lambda: [row.version for row in town.ready("chat")] == ["2"], what="2 being served")
    listed = json.loads(place.command("models", "list", "--json").stdout)["models"]
    chat = next(line for line in listed if line["name"] == "chat")
    assert chat["versions"] == ["2"]
    assert chat["alias"]["target"] == "2"
    assert "3" in chat["alias"]["refused"]
    assert "serves 2" in place.command("status").stdout
    newest = json.loads(place.command("models", "history", "chat", "--json").stdout)["moves"][0]
    assert (newest["from"], newest["to"], newest["cause"]) == (3, 2, "automatic")
    assert "fail = load" in newest["note"]
    # By the name of a model that follows another alias, that one is meant.
    assert "chat@staging names version 1" in place.command("models", "history", "lone").stdout

    back = place.command("models", "rollback", "chat")
    assert back.returncode == 0, back.stderr
    assert "chat@prod names version 1 now, 2 before" in back.stderr
    assert client.submit("chat", "Which?", max_tokens=5).result(timeout=30).version == "1"

    # The other alias of the same versions is another model's, whose one worker changes side by side.
    side = place.command("models", "promote", "lone", "2")
    assert side.returncode == 0, side.stderr
    assert [row.version for row in town.ready("lone")] == ["2"]
    assert [row.version for row in town.ready("chat")] == ["1"]
    # A number is that version, whatever is promoted.
    assert client.submit("fixed", "Which?", max_tokens=5).result(timeout=30).version == "1"
    # Nobody started a process: all are those of the first `up`.
    assert place.pids() == pids

    one = place.command("models", "promote", "lone", "1", "--share", "10%")
    assert one.returncode == 2
    assert "headpond scale lone=2" in one.stderr
    repeat = place.command("models", "promote", "chat", "1")
    assert repeat.returncode == 0
    assert "names version 1 already" in repeat.stderr


@pytest.mark.slow
def test_what_cannot_be_promoted_is_refused_with_what_to_do(town: Town) -> None:
    place, registry = placed(town)
    said = place.command("models", "promote", "plain", "1")
    assert said.returncode == 1
    assert f"headpond models push plain {place.folder / 'plain'}" in said.stderr
    assert 'source = "s3:plain@prod" in place of path = ' in said.stderr
    assert "headpond reload" in said.stderr
    for words, code, text in (
        (("promote", "chat", "9"), 1, "headpond models versions chat"),
        (("promote", "chat", "prod"), 2, "is no number of a version"),
        (("promote", "chat", "2", "--auto"), 2, "--share"),
        (("promote", "chat", "2", "--share", "100%"), 2, "0.1% to 99.9%"),
        (("promote", "chat", "2", "--alias", "3"), 2, "cannot name an alias"),
        (("rollback", "chat"), 1, "headpond models promote"),
    ):
        refused = place.command("models", *words)
        assert (refused.returncode, text in refused.stderr) == (code, True), (words, refused)
    assert Aliases(registry).get("prod") is None

    # Before any model follows it, an alias may be given its version.
    first = place.command("models", "promote", "chat", "1", "--alias", "later", "--no-wait")
    assert first.returncode == 0
    assert "No model of this configuration follows chat@later" in first.stderr
    none = place.command("models", "promote", "chat", "1")
    assert none.returncode == 0
    assert "no worker lives; those that start serve version 1" in none.stderr


@pytest.mark.parametrize(
    ("switch", "serving", "shown"),
    [
        (Switch(1, "4", "3"), ("4", "4"), "4"),
        (Switch(1, "4", "3"), ("4", "3", "3"), "3 -> 4 (1/3)"),
        (Switch(1, "4", "3"), (), "4"),
        (Switch(1, "4", "3", refused={"4": "x"}), ("3",), "3 (4 refused)"),
        (Switch(1, "3", "2", trial="4", permille=100), ("3", "4"), "3, 10% try 4"),
        (Switch(1, ""), (), "nothing"),
    ],
)
def test_where_an_alias_stands_is_told_in_a_few_words(switch: Switch, serving: tuple[str, ...], shown: str) -> None:
    assert str(AliasState(switch, serving)) == shown
