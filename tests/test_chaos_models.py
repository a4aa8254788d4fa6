"""scripts/chaos models: a few kills of it, and that each rule by which versions are judged can find something."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from conftest import eventually
from headpond.errors import MalformedDocument
from headpond_workers.engines.formats.safetensors_header import read_safetensors_header

REPO = Path(__file__).resolve().parent.parent
PROGRAM = REPO / "scripts" / "chaos_models"
SHARED = (REPO / "scripts" / "chaos_runs", REPO / "scripts" / "benchmarks")
PAGE = REPO / "docs" / "reliability.md"
RECORDS = REPO / "docs" / "reliability"
OWN = (
    "weights",
    "task_plan",
    "forge",
    "found",
    "judgement",
    "ledger",
    "refusals",
    "models_record",
    "models_page",
    "pins",
    "load_plan",
    "load_verdict",
)
"""Modules of scripts/chaos_models, which import each other by file name."""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    before = set(sys.modules)
    for folder in (*reversed(SHARED), PROGRAM):
        monkeypatch.syspath_prepend(str(folder))
    for name in OWN:
        assert name not in sys.modules, f"another module is called {name}"
    yield {name: importlib.import_module(name) for name in OWN}
    # Also those of the other programs that these have brought: other tests import them anew.
    for name, module in list(sys.modules.items()):
        if name not in before and str(getattr(module, "__file__", "")).startswith(str(REPO / "scripts")):
            del sys.modules[name]


# ---- the run itself


def chaos(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments], stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )  # fmt: skip


@pytest.mark.slow
def test_a_dozen_kills_amid_pushes_moves_and_collections_lose_no_version(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    arguments = ("--kills", "12", "--survey-kills", "6", "--grace-s", "1", "--seed", "3")
    process = chaos(*arguments, "--json", str(tmp_path / "models.json"))
    try:
        _, told = process.communicate(timeout=200)
    finally:
        process.terminate()
        process.wait(60)

    assert process.returncode == 0, told
    found = modules["models_record"].FILE.from_json((tmp_path / "models.json").read_text(encoding="utf-8"), where="x")
    assert found.wrong == []
    counted = found.counted()
    assert sum(counted.values()) >= 12
    assert counted["push"] >= 2
    assert len(counted) >= 3
    assert found.versions["acknowledged"] >= 3
    assert found.versions["lost"] == 0
    assert found.versions["complete"] >= found.versions["acknowledged"] - found.versions["deleted"] - 12
    assert len(found.surveys) >= 3
    assert "crashed" not in {end for ends in found.outcomes.values() for end in ends}


@pytest.mark.slow
def test_an_interrupted_run_with_models_leaves_no_process_behind(tmp_path: Path) -> None:
    process = chaos("--seconds", "100", "--json", str(tmp_path / "models.json"))
    try:
        assert process.stderr is not None
        told = iter(process.stderr.readline, "")
        assert any("storage is ready" in line for line in told)
        # The storage server, and the process that makes all others.
        started = eventually(
            lambda: found if len(found := psutil.Process(process.pid).children(recursive=True)) >= 3 else None,
            what="a task",
        )
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130
    assert not (tmp_path / "models.json").exists()
    eventually(lambda: not any(child.is_running() for child in started), what="the end of all its processes")


# ---- the judgement: sound versions, and each thing that can be wrong with them


FILES = (("config.json", 7, "c0"), ("model.safetensors", 90, "c1"))
OTHER = (("config.json", 7, "c0"), ("model.safetensors", 90, "c2"))


@dataclass
class Case:
    """A survey in which nothing is wrong: versions 1 to 4, of which 2 is deleted, and an alias that was moved twice."""

    modules: dict[str, ModuleType]
    versions: dict[int, Any] = field(default_factory=dict)
    history: dict[Any, Any] = field(default_factory=dict)
    last: bool = True

    def __post_init__(self) -> None:
        found = self.modules["found"]
        self.versions = {n: found.VersionFound("chat", n, "complete", f"push-{n}", FILES) for n in (1, 2, 3, 4)}
        self.versions[2] = replace(self.versions[2], state="deleted", files=())
        moves = tuple(found.MoveFound(*move) for move in ((1, 0, 1), (2, 1, 3)))
        self.alias = found.AliasFound("chat", "prod", 3, 1, 2, moves)
        keys = frozenset({"chunks/000001/ab/x", "models/chat/manifests/y"})
        self.survey = found.Survey((), (), (), (), keys, keys, keys, (), 100)
        self.promised = self.modules["judgement"].Promised(
            {f"push-{n}": FILES for n in (1, 2, 3, 4)},
            {("chat", n): f"push-{n}" for n in (1, 2, 3)},
            frozenset(),
            frozenset({("chat", 2)}),
            {("chat", "prod"): {1: 1, 2: 3}},
        )

    def change(self, number: int, **changes: Any) -> None:
        self.versions[number] = replace(self.versions[number], **changes)

    def moved(self, *moves: tuple[int, int, int], **changes: Any) -> None:
        self.alias = replace(self.alias, moves=tuple(self.modules["found"].MoveFound(*move) for move in moves))
        self.alias = replace(self.alias, **changes)

    def wrong(self) -> list[str]:
        survey = replace(self.survey, versions=tuple(self.versions.values()), aliases=(self.alias,))
        found: list[str] = self.modules["judgement"].judge(survey, self.promised, self.history, last=self.last)
        return found


@pytest.fixture
def case(modules: dict[str, ModuleType]) -> Case:
    return Case(modules)


def test_nothing_is_wrong_with_sound_versions(case: Case) -> None:
    assert case.wrong() == []
    assert case.wrong() == []


def test_an_acknowledged_version_that_is_not_there_is_found(case: Case) -> None:
    del case.versions[1]
    assert "chat@1: lost: it was acknowledged, and there is no such version" in case.wrong()
    assert "chat: versions up to 4, without 1" in case.wrong()


@pytest.mark.parametrize("state", ["pending", "deleting", "deleted"])
def test_an_acknowledged_version_in_another_state_is_found(case: Case, state: str) -> None:
    case.last = False
    case.change(1, state=state)
    assert f"chat@1: lost: it was acknowledged, nobody deleted it, and it is {state}" in case.wrong()


def test_a_version_that_was_quarantined_though_nothing_was_damaged_is_found(case: Case) -> None:
    case.change(4, state="quarantined")
    assert case.wrong() == ["chat@4: it was quarantined, and nothing was damaged"]


def test_a_deletion_that_was_acknowledged_and_did_not_happen_is_found(case: Case) -> None:
    case.change(2, state="complete", files=FILES)
    assert case.wrong() == ["chat@2: its deletion was acknowledged, and it is complete"]


@pytest.mark.parametrize("state", ["complete", "deleting", "deleted"])
def test_a_deletion_that_was_cut_off_may_have_come_to_any_step(case: Case, state: str) -> None:
    case.last = False
    case.promised = replace(case.promised, doomed=frozenset({("chat", 1)}))
    case.change(1, state=state)
    assert case.wrong() == []


def test_a_deletion_that_was_cut_off_makes_no_version_pending(case: Case) -> None:
    case.last = False
    case.promised = replace(case.promised, doomed=frozenset({("chat", 1)}))
    case.change(1, state="pending")
    assert case.wrong() == ["chat@1: its deletion was cut off, and it is pending"]


def test_bytes_that_are_not_those_that_were_pushed_are_found(case: Case) -> None:
    case.change(4, files=OTHER)
    assert case.wrong() == ["chat@4: its bytes are not those that were pushed: model.safetensors"]
    case.change(4, files=FILES[:1])
    assert case.wrong() == ["chat@4: its bytes are not those that were pushed: model.safetensors"]


def test_a_version_that_does_not_verify_is_found(case: Case) -> None:
    case.change(3, files=(), broken="chunks/000001/ab/x: no such object in storage")
    assert case.wrong() == ["chat@3: it does not verify: chunks/000001/ab/x: no such object in storage"]


def test_a_version_that_nobody_pushed_is_found(case: Case) -> None:
    case.change(4, note="push-9")
    assert case.wrong() == ["chat@4: nobody made a push 'push-9'"]


def test_a_number_that_was_told_to_a_push_of_other_files_is_found(case: Case) -> None:
    case.promised = replace(case.promised, pushed={**case.promised.pushed, "push-1": OTHER})
    assert "chat@1: the files of this version are not those of the push that was told its number" in case.wrong()


def test_numbers_that_are_not_contiguous_are_found(case: Case) -> None:
    case.versions[7] = replace(case.versions[4], number=7)
    assert case.wrong() == ["chat: versions up to 7, without 5, 6"]


@pytest.mark.parametrize(
    ("change", "what"),
    [({"state": "deleted", "files": ()}, "it names version 3, which is deleted"),
     ({"state": "deleting"}, "it names version 3, which is deleting")],
    ids=["deleted", "deleting"],
)  # fmt: skip
def test_an_alias_that_names_a_version_that_is_not_complete_is_found(
    case: Case, change: dict[str, Any], what: str
) -> None:
    case.last = False
    case.promised = replace(case.promised, doomed=frozenset({("chat", 3)}))
    case.change(3, **change)
    assert case.wrong() == [f"chat@prod: {what}"]


def test_an_alias_that_names_a_version_that_never_was_is_found(case: Case) -> None:
    case.promised = replace(case.promised, moves={})
    case.moved((1, 0, 1), (2, 1, 9), to=9)
    assert case.wrong() == ["chat@prod: it names version 9, which is not there"]


def test_an_alias_that_was_made_and_never_moved_names_nothing(case: Case) -> None:
    case.promised = replace(case.promised, moves={})
    case.moved(to=0, previous=0, seq=0)
    assert case.wrong() == []


def test_a_history_that_is_not_linear_is_found(case: Case) -> None:
    case.moved((1, 0, 1), (2, 4, 3))
    assert case.wrong() == ["chat@prod: move 2 leaves version 4, and the one before went to 1"]
    case.history.clear()
    case.moved((1, 0, 1), (3, 1, 3), seq=3)
    assert "chat@prod: move 3 follows move 1" in case.wrong()
    case.history.clear()
    case.moved((1, 0, 1), (2, 1, 3), to=4, seq=2)
    assert case.wrong() == ["chat@prod: its last move is not to version 4, which it names since move 2"]


def test_a_history_that_was_written_anew_is_found(case: Case) -> None:
    assert case.wrong() == []
    case.moved((1, 0, 3), (2, 3, 3))
    assert "chat@prod: move 1 was 0 to 1, now 0 to 3" in case.wrong()


def test_an_alias_that_went_back_in_time_is_found(case: Case) -> None:
    assert case.wrong() == []
    case.moved((1, 0, 1), to=1, seq=1)
    assert case.wrong() == ["chat@prod: it was moved 2 times, now 1"]


def test_an_alias_that_is_gone_is_found(case: Case) -> None:
    assert case.wrong() == []
    case.alias = replace(case.alias, alias="next")
    assert "chat@prod: lost: it was moved, and is not there" in case.wrong()


def test_a_move_that_was_acknowledged_and_is_not_there_is_found(case: Case) -> None:
    case.promised = replace(case.promised, moves={("chat", "prod"): {2: 3, 3: 4}})
    assert case.wrong() == ["chat@prod: lost: move 3 was acknowledged, and the history has none"]
    case.promised = replace(case.promised, moves={("chat", "prod"): {2: 4}})
    assert case.wrong() == ["chat@prod: move 2 was told to go to 4, and went to 3"]


def test_an_object_that_is_needed_and_not_there_is_found(case: Case) -> None:
    case.survey = replace(case.survey, stored=frozenset({"models/chat/manifests/y"}))
    assert case.wrong() == ["chunks/000001/ab/x: a version needs it, and it is not there"]


def test_a_document_that_cannot_be_read_is_found(case: Case) -> None:
    case.survey = replace(case.survey, unreadable=("gc/state: corrupt",))
    assert case.wrong() == ["a document cannot be read: gc/state: corrupt"]


@pytest.mark.parametrize(
    ("change", "what"),
    [({"intents": ("aa",)}, "intents are left after all is over: aa"),
     ({"rounds": (3,)}, "rounds of the collector are left after all is over: 3"),
     ({"reachable": frozenset({"models/chat/manifests/y"})},
      "1 objects are left that nothing leads to, such as chunks/000001/ab/x")],
    ids=["intents", "rounds", "orphans"],
)  # fmt: skip
def test_what_killed_processes_left_is_found_at_the_end_alone(case: Case, change: dict[str, Any], what: str) -> None:
    case.survey = replace(case.survey, **change)
    assert case.wrong() == [what]
    case.last = False
    assert case.wrong() == []


@pytest.mark.parametrize("state", ["pending", "deleting"])
def test_a_version_that_was_left_half_way_is_found_at_the_end_alone(case: Case, state: str) -> None:
    case.change(4, state=state)
    assert case.wrong() == [f"versions are left {state} after all is over: chat@4"]
    case.last = False
    assert case.wrong() == []


@pytest.mark.parametrize(
    ("order", "error", "doomed", "fits"),
    [({"kind": "push"}, "PushOvertaken", False, True),
     ({"kind": "push"}, "VersionUnusable", False, False),
     ({"kind": "pull", "number": 3}, "VersionUnusable", True, True),
     ({"kind": "pull", "number": 3}, "VersionUnusable", False, False),
     ({"kind": "pull", "number": 3}, "VersionMissing", True, False),
     ({"kind": "hold", "number": 3}, "VersionMissing", True, False),
     ({"kind": "hold", "alias": "prod"}, "VersionMissing", False, True),
     ({"kind": "hold", "alias": "prod"}, "VersionUnusable", False, False),
     ({"kind": "promote", "number": 3, "alias": "prod"}, "AliasMoved", False, True),
     ({"kind": "delete", "number": 3}, "VersionInUse", True, True),
     ({"kind": "collect"}, "BlobCorrupt", False, False)],
    ids=lambda value: str(value).replace(" ", ""),
)  # fmt: skip
def test_a_refusal_is_judged_by_what_was_asked_for(
    modules: dict[str, ModuleType], order: dict[str, Any], error: str, doomed: bool, fits: bool
) -> None:
    assert (modules["refusals"].unfit_refusal(order, error, doomed=doomed) is None) == fits


# ---- plan, contents and ledger


def test_the_same_seed_gives_the_same_tasks_and_moments(modules: dict[str, ModuleType]) -> None:
    plan = modules["task_plan"]
    drawn = list(islice(plan.plan_tasks(3), 2000))
    assert drawn == list(islice(plan.plan_tasks(3), 2000))
    assert drawn != list(islice(plan.plan_tasks(4), 2000))
    assert {task.kind for task in drawn} == set(plan.SHARES)
    assert {task.model for task in drawn} == set(modules["weights"].MODELS)
    assert {task.width for task in drawn} == set(plan.WIDTHS)
    assert {task.trigger for task in drawn} == set(plan.Trigger)
    killed = [task.killed_at for task in drawn if task.killed_at is not None]
    assert 0.75 < len(killed) / len(drawn) < 0.85
    assert 0 <= min(killed) < 0.02
    assert 1.05 < max(killed) < 1.1


def test_the_same_seed_gives_the_same_acts_under_load_and_each_kind_of_process_is_killed(
    modules: dict[str, ModuleType],
) -> None:
    plan, kinds = modules["load_plan"], modules["task_plan"].TaskKind
    drawn = list(islice(plan.plan_acts(3), 2000))
    assert drawn == list(islice(plan.plan_acts(3), 2000))
    assert drawn != list(islice(plan.plan_acts(4), 2000))
    assert {act.task.kind for act in drawn} == set(plan.SHARES)
    assert {kinds.WORKER, kinds.PERSISTER, kinds.SERVER} < set(plan.SHARES)
    assert {act.task.model for act in drawn} == {modules["weights"].ANSWERS}
    away = [act.task.away_s for act in drawn]
    assert 0 <= min(away) < 0.1
    assert 2.9 < max(away) < 3
    assert 0.9 < sum(act.after_s for act in drawn) / len(drawn) < 1.1


def test_contents_follow_from_their_recipe_and_share_what_did_not_change(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    weights, rng = modules["weights"], __import__("random").Random(7)
    first = weights.first_recipe("chat", rng)
    second = weights.changed(first, rng)
    for name, recipe in (("first", first), ("second", second)):
        weights.write(recipe, tmp_path / name)
        assert weights.hashes_of_folder(tmp_path / name) == weights.hashes(recipe)
        header = read_safetensors_header(tmp_path / name / weights.TENSORS)
        assert len(header.tensors) == len(weights.SHAPES["chat"][0])
    same = sum(one == other for one, other in zip(first.seeds, second.seeds, strict=True))
    assert 0 < same < len(first.seeds)
    assert weights.hashes(weights.copied(first, "draft")) == weights.hashes(first)
    assert weights.Recipe.of(json.loads(json.dumps(second.told()))) == second
    (tmp_path / "first" / "more").write_bytes(b"")
    assert weights.hashes_of_folder(tmp_path / "first") != weights.hashes(first)


def task(modules: dict[str, ModuleType], kind: str, *draws: float) -> Any:
    plan = modules["task_plan"]
    return plan.PlannedTask(plan.TaskKind(kind), "chat", 1, (*draws, 0.5, 0.5, 0.5)[:3], None, plan.Trigger.TIME, 0.0)


def pushed(modules: dict[str, ModuleType], ledger: Any, count: int) -> list[str]:
    ids = []
    for number in range(1, count + 1):
        order = ledger.order(task(modules, "push", 0.9))
        ledger.answered(order, {"word": "done", "number": number})
        ids.append(order["id"])
    return ids


def test_a_task_that_needs_a_version_is_a_push_while_there_is_none(modules: dict[str, ModuleType]) -> None:
    ledger = modules["ledger"].Ledger(1)
    for kind in ("pull", "hold", "promote", "rollback", "delete", "verify"):
        assert ledger.order(task(modules, kind))["kind"] == "push"
    assert ledger.order(task(modules, "collect"))["kind"] == "collect"


def test_a_push_that_was_not_heard_of_is_taken_up_with_the_same_files_and_note(modules: dict[str, ModuleType]) -> None:
    ledger = modules["ledger"].Ledger(1)
    pushed(modules, ledger, 3)
    lost = ledger.order(task(modules, "push", 0.9))
    ledger.answered(lost, None)
    again = ledger.order(task(modules, "push", 0.1))
    assert (again["recipe"], again["note"]) == (lost["recipe"], lost["id"])
    ledger.answered(again, {"word": "done", "number": 4})
    other = ledger.order(task(modules, "push", 0.1))
    assert other["recipe"] != lost["recipe"]
    assert ledger.promised().acknowledged["chat", 4] == again["id"]
    assert ledger.wrong == []


def test_a_number_that_is_told_to_two_pushes_of_different_files_is_found(modules: dict[str, ModuleType]) -> None:
    ledger = modules["ledger"].Ledger(1)
    first, second = ledger.order(task(modules, "push", 0.9)), ledger.order(task(modules, "push", 0.9))
    ledger.answered(first, {"word": "done", "number": 1})
    ledger.answered(second, {"word": "done", "number": 1})
    assert ledger.wrong == [f"chat@1: told to the pushes {first['id']} and {second['id']}, which differ"]


def test_a_version_is_doomed_from_the_beginning_of_its_deletion_until_that_is_refused(
    modules: dict[str, ModuleType],
) -> None:
    ledger = modules["ledger"].Ledger(1)
    pushed(modules, ledger, 5)
    orders = [ledger.order(task(modules, "delete", 0.5, 0.0)) for _ in range(2)]
    number = orders[0]["number"]
    assert orders[1]["number"] != number
    assert not ledger.is_live("chat", number)
    ledger.answered(orders[0], {"word": "refused", "error": "VersionInUse", "why": ""})
    assert ledger.is_live("chat", number)
    assert ledger.ever_doomed(orders[0])
    ledger.answered(orders[1], None)
    assert not ledger.is_live("chat", orders[1]["number"])
    assert ledger.promised().doomed == {("chat", orders[1]["number"])}
    again = {**orders[1], "id": "x"}
    ledger.answered(again, {"word": "done"})
    assert ledger.promised().deleted == {("chat", orders[1]["number"])}
    assert ledger.promised().doomed == set()


# ---- jobs that are submitted for a version


def orders(modules: dict[str, ModuleType]) -> Iterator[Any]:
    """Without end."""
    engines = importlib.import_module("engines")
    found: Iterator[Any] = engines.orders(7, engines.EngineName.SCRIPTED, model="chat")
    return found


def test_a_share_of_the_jobs_is_pinned_to_what_the_alias_names_or_named_before(modules: dict[str, ModuleType]) -> None:
    pins = modules["pins"]
    source = pins.Pins(orders(modules), lambda: pins.Named("4", "3"), seed="1")
    drawn = list(islice(source, 2000))
    assert [replace(order, version="") for order in drawn] == list(islice(orders(modules), 2000))
    by_version = {version: [o for o in drawn if o.version == version] for version in ("", "3", "4")}
    assert 350 < len(by_version["3"]) + len(by_version["4"]) < 450
    assert 110 < len(by_version["3"]) < 210
    assert source.old == {order.id for order in by_version["3"]}
    assert by_version["3"][0].recipient == "chat@3"
    assert by_version[""][0].recipient == "chat"
    again = pins.Pins(orders(modules), lambda: pins.Named("4", "3"), seed="1")
    assert list(islice(again, 2000)) == drawn
    first = pins.Pins(orders(modules), lambda: pins.Named("1", ""), seed="1")
    assert {order.version for order in islice(first, 2000)} == {"", "1"}
    assert first.old == set()


def test_a_pinned_job_that_another_version_answered_or_nobody_is_found(modules: dict[str, ModuleType]) -> None:
    pins, verdict = modules["pins"], modules["load_verdict"]
    ordered = {
        order.id: replace(order, version=version)
        for order, version in zip(orders(modules), ("3", "3", "4", "", "3"), strict=False)
    }
    ids = list(ordered)
    answered = {ids[0]: "3", ids[1]: "4", ids[2]: "4", ids[3]: "4"}
    assert verdict.misplaced(ordered, answered) == [
        f"{ids[1]}: it was submitted for version 3, and answered by 4",
        f"{ids[4]}: it was submitted for version 3, and answered by nobody",
    ]
    assert verdict.misplaced(ordered, answered | {ids[1]: "3", ids[4]: "3"}) == []
    assert pins.counts(ordered, {ids[0], ids[3]}) == {"pinned": 4, "pinned_old": 1, "pinned_versions": 2}


def test_a_change_of_the_queue_that_never_came_to_storage_is_found(modules: dict[str, ModuleType]) -> None:
    assert modules["load_verdict"].unsaved(0) == []
    assert modules["load_verdict"].unsaved(3) == ["3 changes of the queue never came to storage"]


# ---- the process that makes others


@pytest.fixture
def make_forge(modules: dict[str, ModuleType], tmp_path: Path) -> Iterator[Callable[[Any], Any]]:
    made = []

    def make(perform: Any) -> Any:
        made.append(modules["forge"].Forge(perform, log=tmp_path / "log"))
        return made[-1]

    yield make
    for forge in made:
        forge.close()


def test_what_a_process_says_is_heard_and_so_is_its_death(make_forge: Callable[[Any], Any]) -> None:
    def perform(order: dict[str, Any], say: Any) -> None:
        say("begun", of=order["name"])
        if order["name"] == "ends":
            say("done", number=3)
        elif order["name"] == "fails":
            raise ValueError("no such thing")
        else:
            signal.pause()

    forge = make_forge(perform)
    children = {name: forge.start({"name": name}) for name in ("ends", "fails", "waits")}
    assert len({child.pid for child in children.values()}) == 3
    for name in ("ends", "fails"):
        eventually(lambda name=name: children[name].ended, what=f"the end of {name}")
        children[name].listen()
    assert children["ends"].said("begun")["of"] == "ends"
    assert children["ends"].said("done", "refused")["number"] == 3
    assert "ValueError: no such thing" in children["fails"].said("crashed")["why"]
    waits = children["waits"]
    eventually(lambda: waits.listen() or waits.said("begun"), what="a word")
    assert not waits.ended
    waits.kill()
    waits.wait()
    waits.kill()
    assert waits.ended
    assert waits.said("done", "crashed") is None
    assert [children[name].status() for name in ("ends", "fails", "waits")] == [0, 1, -signal.SIGKILL]
    for child in children.values():
        child.close()


def test_processes_end_with_their_forge(make_forge: Callable[[Any], Any]) -> None:
    forge = make_forge(lambda order, say: (say("begun"), signal.pause()))
    child = forge.start({})
    eventually(lambda: child.listen() or child.said("begun"), what="a word")
    process = psutil.Process(child.pid)
    assert process.is_running()
    os.kill(forge.pid, 0)
    forge.close()
    eventually(lambda: not process.is_running(), what="the end of its process")
    assert not psutil.pid_exists(child.pid)


# ---- the file and the page


def recorded(modules: dict[str, ModuleType], **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "seed": 3, "started": "2026-01-02T03:04:05Z", "seconds": 60.0,
        "parameters": {"kills": 3, "seconds": None, "grace_s": 2.0, "survey_kills": 50},
        "machine": {"commit": "0123456789abcdef", "dirty": False, "cpu": "a cpu", "cores": 2, "memory_gib": 4.0,
                    "python": "3.11.0", "versions": {"headpond": "0.1.0"}},
        "kills": [[0.5, "push", "chat", 0.4, 0.1, 1, "new version"], [0.9, "collect", "chat", 0.9, 0.2, 0, ""],
                  [1.2, "server", "", 0.0, 1.2, 4, ""]],
        "outcomes": {"push": {"killed": 1, "done": 3}, "collect": {"done": 1}}, "usual_s": {"push": 0.31},
        "left": {"intents": 2, "pending": 1, "deleting": 0, "orphans": 7},
        "surveys": [[1.5, 4, 4, 1, 2, 9, 3 << 20], [2.5, 5, 4, 1, 2, 9, 4 << 20]],
        "versions": {"acknowledged": 1234, "complete": 4, "deleted": 1, "unheard": 2, "lost": 0}, "wrong": [],
    }  # fmt: skip
    return modules["models_record"].Record(**fields | changes)


def test_a_record_with_models_is_read_as_it_was_written(modules: dict[str, ModuleType]) -> None:
    record = modules["models_record"]
    written = recorded(modules, wrong=["chat@1: lost"])
    text = record.FILE.to_json(written)
    assert record.FILE.from_json(text, where="x") == written
    assert '[ 0.5, "push", "chat", 0.4, 0.1, 1, "new version" ]' in text
    assert written.counted() == {"push": 1, "server": 1}


def test_a_record_with_models_of_another_schema_or_shape_is_refused(modules: dict[str, ModuleType]) -> None:
    record = modules["models_record"]
    fields = json.loads(record.FILE.to_json(recorded(modules)))
    for broken in (
        {**fields, "v": 2}, {**fields, "schema": "other"}, {**fields, "kills": [[1]]}, {**fields, "surveys": [[1]]},
        {**fields, "more": 1}, [],
    ):  # fmt: skip
        with pytest.raises(MalformedDocument):
            record.FILE.from_json(json.dumps(broken), where="x")


def test_the_part_on_models_of_the_page_is_what_its_records_render_to(modules: dict[str, ModuleType]) -> None:
    page, shared = modules["models_page"], importlib.import_module("page")
    text = PAGE.read_text(encoding="utf-8")
    rendered = page.render(modules["models_record"].FILE.load(RECORDS))
    assert text == shared.replace_between(text, rendered, page.BEGIN, page.END), (
        "docs/reliability.md and docs/reliability/models*.json disagree. Run: scripts/chaos models render"
    )


def test_committed_records_with_models_are_of_a_known_commit_and_found_nothing_wrong(
    modules: dict[str, ModuleType],
) -> None:
    for name, found in modules["models_record"].FILE.load(RECORDS):
        assert found.machine["commit"], name
        assert found.wrong == [], name
        assert found.versions["lost"] == 0, name


def test_the_page_shows_each_run_with_models_and_what_was_wrong(modules: dict[str, ModuleType]) -> None:
    page = modules["models_page"]
    text = page.render([("models-1.json", recorded(modules)), ("models-2.json", recorded(modules, wrong=["x: lost"]))])
    assert "**4 counted kills in 2 runs, 2,468 acknowledged versions; 0 of them lost, 1 went wrong.**" in text
    assert "| [models-1](reliability/models-1.json) | 1 | 1 | 1,234 | 1 | 2 | 2 | 7 MiB | 0 |" in text
    assert "    - x: lost" in text
    assert "With workers" not in text
    jobs = {"submitted": 1500, "not_finished": 0, "versions": 8, "began_anew": 3, "most_leases": 4, "moves": 20,
            "workers_started": 41}  # fmt: skip
    loaded = recorded(modules, jobs=jobs, parameters={"grace_s": 2.0, "workers": 3, "rollover": "in-place"})
    row = "| [models-load](reliability/models-load.json) | 3, in-place | 20 | 8 | 1,500 | none | 0 | 3 | 4 | 41 |"
    assert row in page.render([("models-load.json", loaded)])
    pinned = replace(loaded, jobs=jobs | {"pinned": 1234, "pinned_old": 321, "pinned_versions": 7})
    row = row.replace("none", "1,234 (321)")
    assert row in page.render([("models-load.json", pinned)])
    assert "`0123456789ab`" in text
    assert "push 4 (done 3, killed 1)" in text
    assert "before its kill, by process: push (new version 1)." in text
    assert "nothing went wrong" in page.render([("models-1.json", recorded(modules))])
    assert "No run is recorded yet" in page.render([])
