"""scripts/chaos state: a few kills of it with a loss of Redis, and that each of its rules can find something."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from conftest import eventually
from headpond.commits import Commit, pack_commit
from headpond.errors import MalformedDocument
from headpond.jobs import Chunk, FinishReason, JobState, Usage
from headpond.requests import Message
from headpond.turns import Policy
from headpond.wire import RunRow
from headpond_workers.persistence.items import CommitItem, Item, JobItem, SessionItem

REPO = Path(__file__).resolve().parent.parent
PROGRAM = REPO / "scripts" / "chaos_state"
SHARED = tuple(REPO / "scripts" / name for name in ("chaos_models", "chaos_runs", "benchmarks"))
PAGE = REPO / "docs" / "reliability.md"
RECORDS = REPO / "docs" / "reliability"
OWN = (
    "state_plan",
    "redis_image",
    "fold_rules",
    "loss_rules",
    "session_rules",
    "process_rules",
    "state_storm",
    "state_record",
    "state_page",
)
"""Modules of scripts/chaos_state, which import each other by file name."""


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
def test_a_dozen_kills_and_a_loss_of_all_of_redis_lose_nothing_that_was_promised(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    process = chaos("--kills", "12", "--losses", "1", "--seed", "3", "--json", str(tmp_path / "state.json"))
    try:
        _, told = process.communicate(timeout=400)
    finally:
        process.terminate()
        process.wait(60)

    assert process.returncode == 0, told
    found = modules["state_record"].FILE.from_json((tmp_path / "state.json").read_text(encoding="utf-8"), where="x")
    assert found.wrong == []
    assert found.kills >= 12
    assert found.counted()["persister"] >= 1
    assert found.counted()["valkey"] >= 1
    assert len(found.losses) == 1
    assert len(found.comparisons) == 3
    assert found.jobs["remade"] >= 1
    assert found.jobs["stored"] >= 1
    assert found.jobs["turns"] >= 1
    assert found.jobs["compared"] == found.jobs["acknowledged"] > 10


@pytest.mark.slow
def test_an_interrupted_run_with_storage_leaves_no_process_behind(tmp_path: Path) -> None:
    process = chaos("--seconds", "200", "--json", str(tmp_path / "state.json"))
    try:
        assert process.stderr is not None
        told = iter(process.stderr.readline, "")
        assert any("are ready" in line for line in told)
        started = psutil.Process(process.pid).children(recursive=True)
        # Two servers, and the process that makes all others, with three workers and two persisters at most.
        assert len(started) >= 4
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130
    assert not (tmp_path / "state.json").exists()
    eventually(lambda: not any(child.is_running() for child in started), what="the end of all its processes")


def test_the_help_of_a_run_with_storage_has_examples() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "scripts/chaos state --kills 40" in done.stdout


# ---- what storage folds to, and Redis


EMPTY: dict[str, Any] = {"str": "", "int": 0, "float": 0.0, "bool": False}
ROW = RunRow(**{field.name: EMPTY.get(str(field.type)) for field in fields(RunRow)})
IDS = tuple(range(100, 110))


class Fold:
    """Storage and Redis that agree: a job that ended, one that runs, one that waits, a session and its commit."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        image = modules["redis_image"]
        self._modules = modules
        self.jobs = {
            "m/ended": image.ImageJob(replace(ROW, state=JobState.FINISHED, durable=True), b"one", IDS, b"answer"),
            "m/runs": image.ImageJob(replace(ROW, state=JobState.RUNNING), b"two", IDS, b""),
            "m/waits": image.ImageJob(replace(ROW, state=JobState.QUEUED), b"three", IDS[:4], b""),
        }
        self.items: list[Item] = [
            CommitItem("c1", b"turn"),
            JobItem("m/ended", b"one", state=JobState.FINISHED, result=b"answer"),
            JobItem("m/runs", b"two", ids=IDS[:6], pieces=("",) * 6),
            JobItem("m/waits", b"three", ids=IDS[:4], pieces=("",) * 4),
            SessionItem("s1", b"row"),
        ]
        self.sessions, self.turns = {"s1": b"row"}, {"c1": b"turn"}
        self.tail: set[tuple[str, str]] = set()

    def store(self, at: int, **changes: Any) -> None:
        self.items[at] = replace(self.items[at], **changes)

    def hold(self, job_id: str, **changes: Any) -> None:
        self.jobs[job_id] = replace(self.jobs[job_id], **changes)

    def wrong(self) -> list[str]:
        image = self._modules["redis_image"].RedisImage(self.jobs, self.sessions, self.turns, frozenset(self.tail))
        found: list[str] = self._modules["fold_rules"].compare(self.items, image)
        return found


@pytest.fixture
def fold(modules: dict[str, ModuleType]) -> Fold:
    return Fold(modules)


def test_nothing_is_wrong_where_storage_and_redis_agree(fold: Fold) -> None:
    assert fold.wrong() == []


def test_a_job_that_only_redis_has_is_found_unless_the_journal_tells_of_it(fold: Fold) -> None:
    del fold.items[3]
    assert fold.wrong() == ["job m/waits: Redis alone has it, and the journal does not tell of it"]
    fold.tail.add(("job", "m/waits"))
    assert fold.wrong() == []


def test_a_job_that_only_storage_has_is_found(fold: Fold) -> None:
    del fold.jobs["m/waits"]
    assert fold.wrong() == ["job m/waits: storage alone has it, and the journal does not tell of it"]


def test_a_request_that_is_not_the_same_in_storage_is_found(fold: Fold) -> None:
    fold.store(3, data=b"other")
    assert fold.wrong() == ["m/waits: its request in storage is another one than in Redis"]


def test_an_end_that_storage_lacks_or_has_alone_is_found(fold: Fold) -> None:
    fold.store(1, state=None, result=b"")
    fold.hold("m/ended", row=replace(fold.jobs["m/ended"].row, durable=False))
    assert fold.wrong() == ["m/ended: Redis has it finished, storage not ended"]
    fold.store(1, state=JobState.FAILED)
    assert fold.wrong() == ["m/ended: Redis has it finished, storage failed"]
    fold.store(1, state=JobState.FINISHED, result=b"answer")
    fold.store(3, state=JobState.CANCELLED)
    assert fold.wrong() == ["m/waits: storage has it cancelled, Redis queued"]


def test_a_durable_end_that_storage_does_not_have_is_found_even_if_the_journal_tells_of_it(fold: Fold) -> None:
    fold.store(1, state=None, result=b"")
    fold.tail.add(("job", "m/ended"))
    assert fold.wrong() == ["m/ended: Redis says that its end is durable, and storage does not have it"]


def test_a_result_that_is_not_the_same_in_storage_is_found(fold: Fold) -> None:
    fold.store(1, result=b"other")
    assert fold.wrong() == ["m/ended: its result in storage has other bytes than in Redis"]
    fold.store(1, result=b"")
    fold.hold("m/ended", result=b"")
    assert fold.wrong() == ["m/ended: it is finished, and storage has no result of it"]


def test_tokens_that_are_not_those_of_redis_are_found(fold: Fold) -> None:
    fold.store(2, ids=(7, *IDS[1:6]))
    assert fold.wrong() == ["m/runs: the 6 tokens of it in storage are not the first of the 10 in Redis"]


def test_a_job_that_does_not_run_has_all_its_tokens_in_storage(fold: Fold) -> None:
    fold.store(3, ids=IDS[:3], pieces=("",) * 3)
    assert fold.wrong() == ["m/waits: it does not run, and storage has 3 of its 4 tokens"]


def test_sessions_and_commits_that_differ_are_found(fold: Fold) -> None:
    fold.turns["c1"] = b"other"
    fold.sessions.clear()
    assert fold.wrong() == [
        "commit c1: storage and Redis have other bytes of it",
        "session s1: storage alone has it, and the journal does not tell of it",
    ]
    fold.tail |= {("commit", "c1"), ("session", "s1")}
    assert fold.wrong() == []


def test_an_acknowledged_job_that_redis_does_not_have_is_found(fold: Fold, modules: dict[str, ModuleType]) -> None:
    image = modules["redis_image"].RedisImage(fold.jobs, {}, {}, frozenset())
    missing = modules["fold_rules"].missing
    assert list(missing(["m/ended", "m/runs"], image)) == []
    assert list(missing(["m/ended", "m/gone"], image)) == ["m/gone: it was acknowledged, and Redis does not have it"]


def test_a_process_that_left_by_itself_or_shows_a_traceback_is_found(modules: dict[str, ModuleType]) -> None:
    judge = modules["process_rules"].judge_process
    assert list(judge("persister 1", (), "2026-01-02 CRITICAL dramatiq: Redis is away\n")) == []
    log = "a line\nTraceback (most recent call last):\nValueError\n"
    assert list(judge("persister 1", ("left by itself with 1",), log)) == [
        "persister 1 left by itself with 1",
        "persister 1 said: Traceback (most recent call last):",
    ]


def test_items_that_are_not_in_order_or_come_twice_are_found(fold: Fold) -> None:
    fold.items.append(fold.items[3])
    assert fold.wrong() == ["storage: its items are not in order, or one comes twice"]


# ---- what may be gone once Redis was lost


HEAD_MS, EMPTIED_MS = 10_000, 13_000


class Gone:
    """A loss of Redis after which all is as it was promised."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self.rules = modules["loss_rules"]
        self.loss = self.rules.Loss(HEAD_MS, HEAD_MS, EMPTIED_MS, 1, {"m/ran": 6}, {"m/durable": b"answer"})
        self.acknowledged = {
            "m/before": self.rules.Acknowledged(HEAD_MS - 1, False),
            "m/durable": self.rules.Acknowledged(HEAD_MS - 900, False),
            "m/lost": self.rules.Acknowledged(HEAD_MS + 1, False),
            "m/stored": self.rules.Acknowledged(HEAD_MS + 1, True),
            "m/after": self.rules.Acknowledged(EMPTIED_MS, False),
        }
        self.found = {job_id: self.rules.Found(JobState.QUEUED) for job_id in self.acknowledged}
        self.found["m/durable"] = self.rules.Found(JobState.FINISHED, b"answer")
        self.found["m/lost"] = self.rules.Found(None)

    def wrong(self) -> list[str]:
        return list(self.rules.judge_loss(self.loss, self.acknowledged, self.found))

    def reader(self, tokens: int, *chunks: Chunk) -> list[str]:
        held = self.rules.Held("m/ran", tokens, 1)
        return list(self.rules.judge_reader(self.loss, held, (chunk_of(0, tokens), *chunks)))


def chunk_of(start: int, end: int, *, restarted: bool = False) -> Chunk:
    return Chunk(start, "x" * (end - start), tuple(range(start, end)), restarted)


@pytest.fixture
def gone(modules: dict[str, ModuleType]) -> Gone:
    return Gone(modules)


def test_what_was_acknowledged_after_the_time_that_is_stated_may_be_gone(gone: Gone) -> None:
    assert gone.wrong() == []


@pytest.mark.parametrize(
    ("job_id", "why"),
    [
        ("m/before", "it was acknowledged 1 ms before the time that is stated"),
        ("m/stored", "its submit had waited for storage"),
        ("m/after", "it was submitted after the loss"),
    ],
)
def test_a_job_that_had_to_come_back_and_did_not_is_found(gone: Gone, job_id: str, why: str) -> None:
    gone.found[job_id] = gone.rules.Found(None)
    assert gone.wrong() == [f"{job_id}: lost with Redis, and {why}"]


def test_a_durable_result_that_is_not_the_same_after_a_restore_is_found(gone: Gone) -> None:
    gone.found["m/durable"] = gone.rules.Found(JobState.FINISHED, b"other")
    assert gone.wrong() == ["m/durable: its result had been durable, and is not the same after the restore"]


def test_a_restore_that_states_less_than_the_head_had_is_found(gone: Gone) -> None:
    gone.loss = replace(gone.loss, stated_ms=HEAD_MS - 1)
    assert (
        f"the restore says that all up to {HEAD_MS - 1} is back, and the head had all up to {HEAD_MS}" in gone.wrong()
    )


def test_a_reader_that_had_more_than_storage_and_was_not_restarted_is_found(gone: Gone) -> None:
    assert gone.reader(9, chunk_of(6, 20, restarted=True)) == []
    assert gone.reader(6, chunk_of(6, 20)) == []
    assert gone.reader(9, chunk_of(9, 20)) == [
        "m/ran: a reader had 9 tokens when Redis was lost, storage 6, and it was not restarted"
    ]
    assert gone.reader(9, chunk_of(7, 20, restarted=True)) != []


def test_an_outage_in_which_no_job_ended_is_found_unless_the_queue_had_to_wait(modules: dict[str, ModuleType]) -> None:
    idle = modules["state_storm"].idle_outages
    assert idle([[5.0, "close", 30.0, 0, False]], least_s=10.0) == [
        "storage was away (close) for 30 s from 5.0 s on, and no job ended meanwhile"
    ]
    well = [[5.0, "close", 30.0, 1, False], [5.0, "stop", 30.0, 0, True], [5.0, "stop", 9.0, 0, False]]
    assert idle(well, least_s=10.0) == []


# ---- conversations


def chain_of(*jobs: str) -> list[Commit]:
    commits: list[Commit] = []
    for number, job in enumerate(jobs, start=1):
        parent = commits[-1].id if commits else ""
        messages = (Message(role="user", content=job), Message(role="assistant", content=f"answer of {job}"))
        draft = Commit(
            "", parent, "s1", job, messages, FinishReason.STOP, "m", "1", "f" * 64, Usage(1, 1), 5, number, 10,
            Policy.MIGRATE,
        )  # fmt: skip
        commits.append(replace(draft, id=pack_commit(draft)[0]))
    return commits


def test_turns_that_are_missing_swapped_or_altered_are_found(modules: dict[str, ModuleType]) -> None:
    def wrong(chain: list[Commit], jobs: list[str]) -> list[str]:
        answers = {job: f"answer of {job}" for job in ("m/a", "m/b", "m/c")}
        return list(modules["session_rules"].judge_session("s1", chain, jobs, answers))

    chain = chain_of("m/a", "m/b", "m/c")
    assert wrong(chain, ["m/a", "m/b", "m/c"]) == []
    assert wrong(chain, ["m/a", "m/c", "m/b"]) == [
        "session s1: its turns are m/a, m/b, m/c, and were submitted as m/a, m/c, m/b"
    ]
    assert wrong([], ["m/a"]) == ["session s1: its turns are none, and were submitted as m/a"]
    assert wrong([chain[0], chain[2]], ["m/a", "m/c"]) == [
        "session s1: commit 2 of its chain does not follow the one before"
    ]
    altered = replace(chain[0], messages=(chain[0].messages[0], Message(role="assistant", content="other")))
    assert wrong([altered], ["m/a"]) == ["session s1: its commit of m/a holds another answer than the job's result"]


# ---- the plan


def test_the_same_seed_gives_the_same_blows(modules: dict[str, ModuleType]) -> None:
    plan = modules["state_plan"]
    drawn = list(islice(plan.plan_blows(3, interval_s=0.5), 3000))
    assert drawn == list(islice(plan.plan_blows(3, interval_s=0.5), 3000))
    assert drawn != list(islice(plan.plan_blows(4, interval_s=0.5), 3000))
    assert {blow.kind for blow in drawn} == set(plan.SHARES)
    assert {blow.mark for blow in drawn} == set(plan.MARKS)
    assert 0.4 < sum(blow.after_s for blow in drawn) / len(drawn) < 0.6
    outages = [blow.lasts_s for blow in drawn if blow.kind in plan.OUTAGES]
    assert min(outages) >= 1.0
    assert 40 < max(outages) <= plan.LONGEST_OUTAGE_S


def test_a_kill_counts_only_if_its_process_had_work(modules: dict[str, ModuleType]) -> None:
    plan = modules["state_plan"]
    assert plan.Blown(1.0, plan.Blow.PERSISTER, 0, 0.0, 3).counted_kill
    assert not plan.Blown(1.0, plan.Blow.PERSISTER, 0, 0.0, 0).counted_kill
    assert not plan.Blown(1.0, plan.Blow.STOP, 0, 9.0, 3).counted_kill
    assert not plan.Blown(1.0, plan.Blow.CUT, 0, 0.0, 3, done=False).counted


# ---- the file and the page


def recorded(modules: dict[str, ModuleType], **changes: Any) -> Any:
    said: dict[str, Any] = {
        "seed": 3, "started": "2026-01-02T03:04:05Z", "seconds": 60.0,
        "parameters": {"kills": 3, "seconds": None, "losses": 1, "workers": 3, "persisters": 2, "producers": 4,
                       "durable_producers": 1, "interval_s": 0.6, "lease_s": 3.0},
        "machine": {"commit": "0123456789abcdef", "dirty": False, "cpu": "a cpu", "cores": 2, "memory_gib": 4.0,
                    "python": "3.11.0", "versions": {"headpond": "0.1.0"}},
        "blows": [[0.5, "persister", 1, 0.0, 7, True], [0.9, "worker", 0, 0.0, 0, False],
                  [1.2, "valkey", 0, 0.3, 4, True], [1.3, "cut", 0, 0.0, 4, True]],
        "outages": [[2.0, "stop", 41.7, 30, False]], "comparisons": [[1.5, 40, 12, 5, 9, 0]],
        "losses": [[8.0, 1400, 20, 9, 3, 1250, 2, 800, 4, 3, 5.5]],
        "jobs": {"acknowledged": 1234, "stored": 300, "remade": 900, "lost": 2, "tokens": 99, "most_leases": 6,
                 "unknown": 5, "compared": 1234, "turns": 310},
        "readings": {"readings": 70, "chunks": 500, "tokens": 4321, "restarted": 8, "resumed": 3},
        "processes": 61, "wrong": [],
    }  # fmt: skip
    return modules["state_record"].Record(**said | changes)


def test_a_record_with_storage_is_read_as_it_was_written(modules: dict[str, ModuleType]) -> None:
    record = modules["state_record"]
    written = recorded(modules, wrong=["loss 1: m/a: lost"])
    text = record.FILE.to_json(written)
    assert record.FILE.from_json(text, where="x") == written
    assert '[ 0.5, "persister", 1, 0.0, 7, true ]' in text
    assert written.counted() == {"persister": 1, "valkey": 1, "cut": 1}
    assert written.kills == 2


def test_a_record_with_storage_of_another_schema_or_shape_is_refused(modules: dict[str, ModuleType]) -> None:
    record = modules["state_record"]
    said = json.loads(record.FILE.to_json(recorded(modules)))
    for broken in (
        {**said, "v": 2}, {**said, "schema": "other"}, {**said, "blows": [[1]]}, {**said, "losses": [[1]]},
        {**said, "outages": [[1]]}, {**said, "comparisons": [[1]]}, {**said, "more": 1}, [],
    ):  # fmt: skip
        with pytest.raises(MalformedDocument):
            record.FILE.from_json(json.dumps(broken), where="x")


def test_the_part_on_state_of_the_page_is_what_its_records_render_to(modules: dict[str, ModuleType]) -> None:
    page, shared = modules["state_page"], importlib.import_module("page")
    text = PAGE.read_text(encoding="utf-8")
    rendered = page.render(modules["state_record"].FILE.load(RECORDS))
    assert text == shared.replace_between(text, rendered, page.BEGIN, page.END), (
        "docs/reliability.md and docs/reliability/state*.json disagree. Run: scripts/chaos state render"
    )


def test_committed_records_with_storage_are_of_a_known_commit_and_found_nothing_wrong(
    modules: dict[str, ModuleType],
) -> None:
    for name, found in modules["state_record"].FILE.load(RECORDS):
        assert found.machine["commit"], name
        assert found.wrong == [], name
        assert found.losses, name


def test_the_page_shows_each_run_with_storage_and_what_was_wrong(modules: dict[str, ModuleType]) -> None:
    page = modules["state_page"]
    text = page.render([("state-1.json", recorded(modules, wrong=["loss 1: m/a: lost"]))])
    assert "**2 counted kills in 1 run, all of Redis lost 1 times, 1,234 jobs; 1 went wrong.**" in text
    assert (
        "| [state-1](reliability/state-1.json) | 1 | 0 | 1 | 0 | 0 | 1 | 42 s | 1 | 1,234 | 300 | 310 | 900 | 2 |"
        in text
    )
    assert "| state-1 | 1,400 | 20 | 9 | 3 | 1.2 s | 2 | 800 | 4 | 3 |" in text
    assert "    - loss 1: m/a: lost" in text
    assert "`0123456789ab`" in text
    assert "nothing went wrong" in page.render([("state-1.json", recorded(modules))])
    assert "No run is recorded yet" in page.render([])
