"""scripts/chaos: one minute of it, and that each rule of its verdict can find something."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from conftest import eventually
from headpond.connections import RedisAddress
from headpond.errors import MalformedDocument, RedisUnavailable
from headpond.jobs import Chunk, JobState
from headpond.operations import Entry
from headpond.queue import Server
from headpond.wire import Call, Ended, Rewound, TokenRun, pack_data
from headpond_workers.supervision.embedded_valkey import ValkeyProcess

REPO = Path(__file__).resolve().parent.parent
PROGRAM = REPO / "scripts" / "chaos_runs"
PAGE = REPO / "docs" / "reliability.md"
RECORDS = REPO / "docs" / "reliability"
FLAT = ("faults", "proxies", "evidence", "verdict", "engines", "record", "machine_steps", "page")
"""Modules of scripts/chaos_runs, which import each other by file name."""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PROGRAM))
    for name in FLAT:
        assert name not in sys.modules, f"another module is called {name}"
    yield {name: importlib.import_module(name) for name in FLAT}
    # Also those of the benchmarks that these have brought: other tests import them anew.
    for name, module in list(sys.modules.items()):
        if name not in before and str(getattr(module, "__file__", "")).startswith(str(REPO / "scripts")):
            del sys.modules[name]


@pytest.fixture
def evidence(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["evidence"]


# ---- the run itself


def chaos(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments], stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )  # fmt: skip


@pytest.mark.slow
def test_a_minute_of_chaos_loses_nothing_and_repeats_nothing(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    process = chaos("--seconds", "60", "--seed", "7", "--json", str(tmp_path / "chaos.json"))
    try:
        _, told = process.communicate(timeout=240)
    finally:
        process.terminate()
        process.wait(60)

    assert process.returncode == 0, told
    found = modules["record"].FILE.from_json((tmp_path / "chaos.json").read_text(encoding="utf-8"), where="chaos.json")
    assert found.wrong == []
    counted = found.counted()
    assert all(counted[kind] > 0 for kind in modules["faults"].FaultKind), counted
    assert counted["worker"] + counted["server"] >= 30
    assert found.undisturbed == len(found.jobs) >= 50
    assert all(found.column("ok"))
    assert max(found.column("attempts")) > 1
    assert min(found.column("tokens")) >= 40
    assert found.readings["tokens"] > 1000


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process_behind(tmp_path: Path) -> None:
    process = chaos("--seconds", "100", "--json", str(tmp_path / "chaos.json"))
    try:
        assert process.stderr is not None
        told = iter(process.stderr.readline, "")
        assert any("are ready" in line for line in told)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 6
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130
    assert not (tmp_path / "chaos.json").exists()
    eventually(lambda: not any(child.is_running() for child in started), what="the end of all its processes")


# ---- the verdict: sound evidence, and each thing that can be wrong with it


IDS, PIECES = tuple(range(100, 120)), tuple(f" w{n}" for n in range(20))
TEXT = "".join(PIECES)


def run_of(start: int, end: int) -> TokenRun:
    return TokenRun(start, IDS[start:end], PIECES[start:end])


def chunk_of(start: int, end: int, *, restarted: bool = False) -> Chunk:
    return Chunk(start, "".join(PIECES[start:end]), IDS[start:end], restarted)


STREAM = (run_of(0, 7), Rewound(7, "the server restarted"), run_of(7, 20), Ended(JobState.FINISHED, 20))


class Case:
    """Evidence of one job that went well, to be changed by a test, and what the verdict says of it."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        e = modules["evidence"]
        self._judge = modules["verdict"].judge
        self.job = e.JobEvidence("chat/a", JobState.FINISHED, 2, 0, "", e.Answer(IDS, TEXT), STREAM)
        self.readings = [
            e.Reading("chat/a", 0, (chunk_of(0, 5), chunk_of(5, 20)), True),
            e.Reading("chat/a", 12, (chunk_of(7, 20, restarted=True),), True),
            e.Reading("chat/a", 5, (chunk_of(5, 20),), True),
            e.Reading("chat/a", 20, (), True),
        ]
        self.queue = e.QueueEvidence({"finished": 1}, (), (), ())
        self.worker = e.WorkerEvidence(0, (), "2026-01-02 03:04:05,678 WARNING headpond.held renewal_failed\n")
        self.undisturbed: dict[str, Any] | None = {"chat/a": e.Answer(IDS, TEXT)}

    def change(self, **fields: Any) -> None:
        self.job = replace(self.job, **fields)

    def read(self, *chunks: Chunk, after: int = 0, whole: bool = True) -> None:
        self.readings = [type(self.readings[0])("chat/a", after, chunks, whole)]

    def wrong(self) -> list[str]:
        return [
            str(found) for found in self._judge([self.job], self.readings, self.queue, [self.worker], self.undisturbed)
        ]


@pytest.fixture
def case(modules: dict[str, ModuleType]) -> Case:
    return Case(modules)


def test_nothing_is_wrong_with_a_job_that_went_well(case: Case) -> None:
    assert case.wrong() == []


def test_a_lost_job_is_found(case: Case) -> None:
    case.change(state=None, answer=None, events=())
    case.readings = []
    assert "chat/a: lost: it was acknowledged, and the server does not know it" in case.wrong()


def test_a_quarantined_innocent_is_found(case: Case) -> None:
    case.change(state=JobState.DEAD, reason="3 strikes")
    assert any("an innocent job was quarantined after 2 leases: 3 strikes" in what for what in case.wrong())


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.CANCELLED])
def test_a_job_that_did_not_finish_is_found(case: Case, state: JobState) -> None:
    case.change(state=state)
    assert any(f"it is {state.value} instead of finished" in what for what in case.wrong())


def test_a_double_end_is_found(case: Case) -> None:
    case.change(events=(*STREAM, Ended(JobState.FINISHED, 20)))
    assert "chat/a: 2 ends in its stream instead of one" in case.wrong()


def test_a_missing_end_is_found(case: Case) -> None:
    case.change(events=STREAM[:-1])
    assert case.wrong() == ["chat/a: 0 ends in its stream instead of one"]


def test_a_stream_that_goes_on_after_its_end_is_found(case: Case) -> None:
    case.change(events=(STREAM[-1], *STREAM[:-1]))
    assert "chat/a: its stream goes on after its end" in case.wrong()


def test_an_end_in_another_state_is_found(case: Case) -> None:
    case.change(events=(*STREAM[:-1], Ended(JobState.CANCELLED, 20)))
    assert case.wrong() == ["chat/a: its stream ends as cancelled, its row as finished"]


def test_an_end_at_another_offset_is_found(case: Case) -> None:
    case.change(events=(*STREAM[:-1], Ended(JobState.FINISHED, 19)))
    assert case.wrong() == ["chat/a: its end says 19 tokens, its stream has 20"]


def test_a_finished_job_without_a_result_is_found(case: Case) -> None:
    case.change(answer=None)
    assert case.wrong() == ["chat/a: finished without a result"]


def test_a_lost_token_is_found(case: Case) -> None:
    case.change(events=(run_of(0, 7), run_of(8, 20), STREAM[-1]))
    assert case.wrong()[0] == "chat/a: tokens 7 to 7 are not in its stream"


def test_a_repeated_token_is_found(case: Case) -> None:
    case.change(events=(run_of(0, 7), run_of(6, 20), STREAM[-1]))
    assert case.wrong()[0] == "chat/a: its stream repeats tokens from 6 on, after 7"


def test_a_rewound_beyond_the_stream_is_found(case: Case) -> None:
    case.change(events=(run_of(0, 7), Rewound(9, ""), run_of(9, 20), STREAM[-1]))
    assert case.wrong()[0] == "chat/a: its stream is rewound to 9, and has 7 tokens"


def test_a_result_that_is_not_its_stream_is_found(case: Case, evidence: ModuleType) -> None:
    case.undisturbed, case.readings = None, []
    case.change(answer=evidence.Answer((*IDS[:5], 7, *IDS[6:]), TEXT))
    assert case.wrong() == ["chat/a: stream and result differ: token 5 is 105, not 7"]
    case.change(answer=evidence.Answer(IDS[:-1], TEXT))
    assert case.wrong() == ["chat/a: stream and result differ: 20 tokens instead of 19"]
    case.change(answer=evidence.Answer(IDS, TEXT + "!"))
    assert case.wrong() == ["chat/a: the text of its stream is not that of its result"]


def test_an_answer_that_is_not_the_undisturbed_one_is_found(case: Case, evidence: ModuleType) -> None:
    case.undisturbed = {"chat/a": evidence.Answer((*IDS[:3], 0, *IDS[4:]), TEXT)}
    assert case.wrong() == ["chat/a: result and undisturbed run differ: token 3 is 103, not 0"]
    case.undisturbed = {"chat/a": evidence.Answer(IDS, TEXT.upper())}
    assert case.wrong() == ["chat/a: the text of its result is not that of the undisturbed run"]
    case.undisturbed = {}
    assert case.wrong() == ["chat/a: the undisturbed run has no answer to compare with"]


def test_a_reader_that_lost_a_token_is_found(case: Case) -> None:
    case.read(chunk_of(0, 5), chunk_of(6, 20))
    assert case.wrong() == ["chat/a: a reader from 0 on lost tokens: 6 came where 5 was due"]


def test_a_reader_that_was_given_a_token_twice_is_found(case: Case) -> None:
    case.read(chunk_of(0, 5), chunk_of(4, 20))
    assert case.wrong() == ["chat/a: a reader from 0 on was given again tokens: 4 came where 5 was due"]


def test_a_reader_that_was_restarted_without_a_rewound_is_found(case: Case) -> None:
    case.read(chunk_of(0, 9), chunk_of(8, 20, restarted=True))
    assert case.wrong() == ["chat/a: a reader from 0 on was restarted at 8, and no rewound says so"]


def test_a_reader_whose_tokens_the_server_lost_is_found(case: Case) -> None:
    case.read(chunk_of(0, 9), chunk_of(7, 20, restarted=True))
    assert case.wrong() == ["chat/a: a reader from 0 on was given tokens from 7 on that the server then lost"]


def test_a_reader_may_be_restarted_where_the_stream_says_that_tokens_are_void(case: Case) -> None:
    case.change(events=(run_of(0, 9), Rewound(0, "another version"), run_of(0, 20), STREAM[-1]))
    case.read(chunk_of(0, 9), chunk_of(0, 20, restarted=True))
    assert case.wrong() == []


def test_a_job_that_came_back_after_its_server_lost_all_has_no_rewinds_of_its_earlier_life(case: Case) -> None:
    case.change(remade=True)
    case.read(chunk_of(0, 8), chunk_of(8, 9), chunk_of(8, 20, restarted=True))
    assert case.wrong() == []
    case.read(chunk_of(0, 9), chunk_of(9, 20, restarted=True))
    assert case.wrong() == ["chat/a: a reader from 0 on was restarted at 9, and no rewound says so"]


def test_a_job_that_came_back_ended_has_a_result_and_no_stream(case: Case) -> None:
    case.change(remade=True, events=())
    assert case.wrong() == []
    case.change(answer=None)
    assert "chat/a: finished without a result" in case.wrong()
    case.change(remade=False)
    assert "chat/a: 0 ends in its stream instead of one" in case.wrong()


def test_a_reader_that_was_never_told_the_end_is_found(case: Case) -> None:
    case.read(chunk_of(0, 9), whole=False)
    assert case.wrong() == ["chat/a: a reader from 0 on was given 9 tokens and never the job's end"]


def test_a_reader_that_was_given_other_tokens_is_found(case: Case) -> None:
    case.read(chunk_of(0, 19))
    assert case.wrong() == ["chat/a: a reader from 0 on was given other tokens: 19 tokens instead of 20"]
    case.read(replace(chunk_of(0, 20), text="something else"))
    assert case.wrong() == ["chat/a: a reader from 0 on was given another text than that of the result"]


def test_a_reading_of_a_job_that_nobody_submitted_is_found(case: Case) -> None:
    case.readings = [replace(case.readings[0], id="chat/b")]
    assert case.wrong() == ["chat/b: it was read, and is none of the acknowledged jobs"]


@pytest.mark.parametrize("counts", [{}, {"finished": 2}, {"finished": 1, "cancelled": 1}])
def test_an_end_that_was_counted_twice_or_not_at_all_is_found(case: Case, counts: dict[str, int]) -> None:
    case.queue = replace(case.queue, counts=counts)
    (what,) = case.wrong()
    assert "and the queue counted" in what


@pytest.mark.parametrize(
    ("field", "what"), [("waiting", "waits"), ("leased", "is leased"), ("held", "is held by a worker")]
)
def test_what_is_left_behind_is_found(case: Case, field: str, what: str) -> None:
    case.queue = replace(case.queue, **{field: ("chat/a",)})
    assert case.wrong() == [f"chat/a: it still {what} after all is over"]


def test_a_worker_that_left_by_itself_is_found(case: Case) -> None:
    case.worker = replace(case.worker, left=("left by itself with 1: RuntimeError",))
    assert case.wrong() == ["worker 0 left by itself with 1: RuntimeError"]


@pytest.mark.parametrize("line", ["2026-01-02 03:04:05,678 ERROR x failed", "Traceback (most recent call last):"])
def test_a_worker_that_logged_an_error_is_found(case: Case, line: str) -> None:
    case.worker = replace(case.worker, log=f"{case.worker.log}{line}\n")
    assert case.wrong() == [f"worker 0 logged: {line}"]


# ---- the plan


def test_the_same_seed_gives_the_same_plan_and_the_same_jobs(modules: dict[str, ModuleType]) -> None:
    faults, engines = modules["faults"], modules["engines"]

    def drawn(seed: int) -> tuple[list[Any], list[Any]]:
        plan = faults.plan_faults(seed, list(faults.FaultKind), workers=5, interval_s=0.5)
        jobs = engines.orders(seed, engines.EngineName.SCRIPTED, model="chat")
        return list(islice(plan, 500)), list(islice(jobs, 100))

    assert drawn(3) == drawn(3)
    assert drawn(3)[0] != drawn(4)[0]
    assert drawn(3)[1] != drawn(4)[1]
    plan, jobs = drawn(3)
    assert {fault.kind for fault in plan} == set(faults.FaultKind)
    assert {fault.target for fault in plan} == set(range(5))
    assert {fault.cut for fault in plan} == {None, *faults.Cut}
    assert all((fault.cut is not None) == (fault.kind is faults.FaultKind.CUT) for fault in plan)
    assert all(fault.lasts > 1 for fault in plan if fault.kind is faults.FaultKind.STOP)
    assert 0.4 < sum(fault.after_s for fault in plan) / len(plan) < 0.6
    assert len({job.id for job in jobs}) == 100


def test_only_the_kinds_that_are_asked_for_are_planned(modules: dict[str, ModuleType]) -> None:
    faults = modules["faults"]
    plan = faults.plan_faults(1, [faults.FaultKind.SERVER], workers=1, interval_s=1.0)
    assert {fault.kind for fault in islice(plan, 50)} == {faults.FaultKind.SERVER}


def test_a_kill_counts_only_if_its_process_had_a_running_job(modules: dict[str, ModuleType]) -> None:
    faults = modules["faults"]
    kill = faults.Fault(1.0, faults.FaultKind.WORKER, 0, None, 0.0, faults.Hit(2, 0))
    assert kill.counted_kill
    assert not replace(kill, hit=faults.Hit(0, 0)).counted
    stop = replace(kill, kind=faults.FaultKind.STOP)
    assert stop.counted
    assert not stop.counted_kill
    assert not replace(kill, kind=faults.FaultKind.CUT, cut=faults.Cut.LOSE_REPLY, done=False).counted


# ---- the proxy


DATA = pack_data(Call("generate", (), {}, {}, 0), digest="d")


@pytest.fixture
def proxy(modules: dict[str, ModuleType], valkey: ValkeyProcess) -> Iterator[Any]:
    proxy = modules["proxies"].WorkerProxy(valkey.port)
    proxy.start()
    yield proxy
    proxy.close()


@pytest.fixture
def through(proxy: Any, valkey: ValkeyProcess) -> Iterator[Server]:
    server = Server(RedisAddress(valkey.url.replace(f":{valkey.port}/", f":{proxy.port}/"), "the test"))
    yield server
    server.close()


def test_a_proxy_whose_thread_left_before_it_was_woken_is_closed_all_the_same(
    modules: dict[str, ModuleType], valkey: ValkeyProcess
) -> None:
    proxy = modules["proxies"].WorkerProxy(valkey.port)
    proxy.start()
    # As when it is busy with a connection while close() begins.
    proxy._leaving = True
    eventually(lambda: not proxy.is_alive(), what="its thread having left")
    proxy.close()
    assert proxy._wake_in.fileno() == -1


def test_a_cut_reply_comes_after_the_server_has_acted(
    modules: dict[str, ModuleType], proxy: Any, through: Server, valkey: ValkeyProcess
) -> None:
    queue = through.queue("chat")
    queue.submit([Entry("chat/a", DATA, "d")])
    # The first call sends the script's source, which has no mark.
    queue.claim("another", seq=1, nonce="m", slots=0)
    order = proxy.cut(modules["faults"].Cut.LOSE_REPLY, script="claim")

    # The client asks again under the same number, and is given the lease that was made before the reply was lost.
    (lease,) = queue.claim("boot", seq=1, nonce="n", slots=1).leases

    assert order.done.wait(10)
    assert (lease.id, lease.attempt) == ("chat/a", 1)


def test_a_cut_request_never_reaches_the_server(modules: dict[str, ModuleType], proxy: Any, through: Server) -> None:
    queue = through.queue("chat")
    queue.submit([Entry("chat/a", DATA, "d")])
    queue.claim("another", seq=1, nonce="m", slots=0)
    orders = [proxy.cut(modules["faults"].Cut.LOSE_REQUEST, script="claim") for _ in range(2)]
    # The call and its one repetition.
    with pytest.raises(RedisUnavailable):
        queue.claim("boot", seq=1, nonce="n", slots=1)
    # The proxy says so a moment after it has cut.
    assert all(order.done.wait(10) for order in orders)
    row = queue.run_row("chat/a")
    assert row is not None
    assert (row.state, row.attempt) == (JobState.QUEUED, 0)


def test_a_partition_ends_by_itself(modules: dict[str, ModuleType], proxy: Any, through: Server) -> None:
    queue = through.queue("chat")
    order = proxy.cut(modules["faults"].Cut.PARTITION, lasts_s=1.0)
    assert order.done.wait(10)
    with pytest.raises(RedisUnavailable):
        queue.tick()

    def answers() -> bool:
        try:
            queue.tick()
        except RedisUnavailable:
            return False
        return True

    eventually(answers, what="the end of the partition")


def test_reset_connections_are_made_anew(modules: dict[str, ModuleType], proxy: Any, through: Server) -> None:
    queue = through.queue("chat")
    assert proxy.cut(modules["faults"].Cut.RESET).done.wait(10)
    assert queue.run_row("chat/a") is None


def test_a_proxy_outlives_the_server_that_it_leads_to(proxy: Any, through: Server, valkey: ValkeyProcess) -> None:
    queue = through.queue("chat")
    valkey.kill()
    with pytest.raises(RedisUnavailable):
        queue.tick()
    valkey.start()
    assert queue.tick() is None


# ---- the file and the page


def recorded(modules: dict[str, ModuleType], **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "engine": "scripted", "seed": 3, "started": "2026-01-02T03:04:05Z", "seconds": 60.0, "spared": 0,
        "parameters": {"workers": 5, "slots": 3, "jobs": 20, "lease_s": 1.5, "interval_s": 0.4, "kinds": ["worker"]},
        "machine": {"commit": "0123456789abcdef", "dirty": False, "cpu": "a cpu", "cores": 2, "memory_gib": 4.0,
                    "python": "3.11.0", "versions": {"headpond": "0.1.0"}},
        "faults": [[0.5, "worker", 1, None, 0.0, 3, 1, True], [0.9, "server", None, None, 0.1, 4, 0, True],
                   [1.2, "cut", 0, "reset", 0.0, 0, 0, False]],
        "jobs": [["chat/a", 2, 1, 80, True], ["chat/b", 1, 0, 40, True]],
        "readings": {"readings": 4, "chunks": 90, "tokens": 1234, "restarted": 1},
        "undisturbed": 2, "workers_started": 6, "wrong": [],
    }  # fmt: skip
    return modules["record"].Record(**fields | changes)


def test_a_record_is_read_as_it_was_written(modules: dict[str, ModuleType]) -> None:
    record = modules["record"]
    written = recorded(modules, wrong=["chat/a: lost"])
    text = record.FILE.to_json(written)
    assert record.FILE.from_json(text, where="x") == written
    assert '[ 0.5, "worker", 1, null, 0.0, 3, 1, true ]' in text
    assert written.counted() == {"worker": 1, "server": 1}


def test_a_record_of_another_schema_or_shape_is_refused(modules: dict[str, ModuleType]) -> None:
    record = modules["record"]
    fields = json.loads(record.FILE.to_json(recorded(modules)))
    for broken in (
        {**fields, "v": 2}, {**fields, "schema": "other"}, {**fields, "faults": [[1]]}, {**fields, "jobs": [["a"]]},
        {**fields, "more": 1}, [],
    ):  # fmt: skip
        with pytest.raises(MalformedDocument):
            record.FILE.from_json(json.dumps(broken), where="x")


def test_the_page_is_what_its_records_render_to(modules: dict[str, ModuleType]) -> None:
    page = modules["page"]
    text = PAGE.read_text(encoding="utf-8")
    runs = modules["machine_steps"].load_machine_runs(RECORDS)
    assert text == page.replace_between(
        text, page.generated(modules["record"].FILE.load(RECORDS), runs), page.BEGIN, page.END
    ), "docs/reliability.md and docs/reliability/chaos*.json disagree. Run: scripts/chaos render"


def test_runs_of_the_state_machine_are_told_with_their_seeds(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    steps = modules["machine_steps"]
    assert steps.load_machine_runs(tmp_path) == []
    runs = [{"seed": n, "commit": "abcdefabcdefabcdef", "steps": 1000, "calls": 2500, "fail_overs": 7} for n in (2, 1)]
    file = tmp_path / steps.FILE
    file.write_text(json.dumps({"schema": steps.SCHEMA, "v": 1, "runs": runs}))
    text = steps.render_steps(steps.load_machine_runs(tmp_path))
    assert "2,000 steps" in text
    assert "5,000 calls of scripts over 2 seeds (1 to 2), with 14 servers" in text
    assert "nothing was found wrong" in text
    file.write_text(json.dumps({"schema": steps.SCHEMA, "v": 1, "runs": [{**runs[0], "failed": "x"}, runs[1]]}))
    assert "seeds 2 found something wrong" in steps.render_steps(steps.load_machine_runs(tmp_path))
    for broken in ('{"v": 1}', "[]", json.dumps({"schema": steps.SCHEMA, "v": 1, "runs": [{}]})):
        file.write_text(broken)
        with pytest.raises(MalformedDocument):
            steps.load_machine_runs(tmp_path)


def test_committed_runs_of_the_state_machine_found_nothing_wrong(modules: dict[str, ModuleType]) -> None:
    runs = modules["machine_steps"].load_machine_runs(RECORDS)
    assert [run.seed for run in runs if run.failed] == []
    assert all(len(run.commit) == 40 for run in runs)  # a "+" behind it is a checkout with changes


def test_committed_records_are_of_a_known_commit_and_found_nothing_wrong(modules: dict[str, ModuleType]) -> None:
    for name, found in modules["record"].FILE.load(RECORDS):
        assert found.machine["commit"], name
        assert found.wrong == [], name
        assert all(found.column("ok")), name


def test_a_page_shows_each_run_and_what_was_wrong(modules: dict[str, ModuleType]) -> None:
    page = modules["page"]
    text = page.render([("chaos-1.json", recorded(modules)), ("chaos-2.json", recorded(modules, wrong=["x: lost"]))])
    assert "**4 counted kills in 2 runs, 4 jobs; 1 went wrong.**" in text
    assert "| [chaos-1](reliability/chaos-1.json) | 1 | 1 | 0 | 0 | 2 | 2 | 120 | 1,234 | 2 | 0 |" in text
    assert "    - x: lost" in text
    assert "`0123456789ab`" in text
    assert "nothing went wrong" in page.render([("chaos-1.json", recorded(modules))])


def test_a_page_without_records_says_that_nothing_was_run(modules: dict[str, ModuleType]) -> None:
    text = modules["page"].render([])
    assert "No run is recorded yet" in text
    assert "scripts/chaos --kills 1000" in text


def test_a_page_without_its_markers_is_refused(modules: dict[str, ModuleType]) -> None:
    page = modules["page"]
    whole = f"intro\n{page.BEGIN}\nold\n{page.END}\nrest\n"
    assert page.replace_between(whole, "new", page.BEGIN, page.END) == f"intro\n{page.BEGIN}\n\nnew\n{page.END}\nrest\n"
    for broken in ("no markers", page.BEGIN, page.END + page.BEGIN, whole + whole):
        with pytest.raises(ValueError, match=r"reliability\.md must hold"):
            page.replace_between(broken, "new", page.BEGIN, page.END)
