"""Which version workers serve while an alias moves: the rules of docs/states.md, "Switching versions". On a real
server, with a clock that the tests move."""

from __future__ import annotations

import pytest

from fleet import VERSION_WAIT_S, Fleet, Follower, told
from headpond import JobState
from headpond.errors import MalformedDocument
from headpond.switching import Assignment, Serve, parse_outcomes, parse_switch, switch
from headpond.wire import pack
from queue_bench import LEASE_S, lease_key, tokens

LOADING_S = 900.0
ABSENT_S = 60.0


def stay(version: str, serve: Serve = Serve.ALL) -> Assignment:
    return Assignment(version, serve, move=False, seq=0)


def go(version: str, serve: Serve = Serve.ALL) -> Assignment:
    return Assignment(version, serve, move=True, seq=0)


def bind(fleet: Fleet, version: str, job_id: str = "chat/bound") -> None:
    """A job with tokens of a version, put back."""
    fleet.bench.submit(job_id)
    lease = fleet.bench.lease("maker", version=version, fingerprint=f"f{version}")
    fleet.bench.append(lease, tokens(0, 5))
    fleet.bench.queue.park([lease_key(lease)])


# What a worker that starts is told


def test_a_queue_that_knows_no_alias_leaves_it_to_the_worker(fleet: Fleet) -> None:
    worker = fleet.add("a")
    worker.boot = "one"
    assert worker.ask() == Assignment("", Serve.ALL, move=False, seq=0)
    worker.version = "3"
    assert worker.ask() == Assignment("", Serve.ALL, move=False, seq=0)
    fleet.bench.queue.refuse(who=worker.who, version="3", reason="it is damaged")
    assert fleet.bench.queue.read_switch() is None


def test_a_worker_that_starts_loads_the_target_and_then_claims_all(fleet: Fleet) -> None:
    fleet.alias("3")
    worker = fleet.add("a")
    assert worker.starts("one") == "3"
    assert worker.serves() == Assignment("3", Serve.ALL, move=False, seq=1)


def test_the_second_worker_that_starts_loads_the_trial_and_claims_for_its_lane(fleet: Fleet) -> None:
    fleet.alias("3", trial="4", permille=100)
    first, second, third = (fleet.add(name) for name in "abc")
    assert first.starts("one") == "3"
    assert second.starts("two") == "4"
    assert third.starts("three") == "3"
    assert told(first.serves()) == stay("3")
    assert told(second.serves()) == stay("4", Serve.OWN_LANE)


def test_two_workers_that_ask_before_either_has_said_what_it_loads_do_not_both_load_the_trial(fleet: Fleet) -> None:
    fleet.serving("3", "a", "b")
    fleet.alias("3", trial="4", permille=100)
    asked = [
        fleet.bench.queue.assign(boot=boot, who=f"site/host/{name}", version="").version
        for name, boot in (("c", "one"), ("d", "two"))
    ]
    assert asked == ["4", "3"]


def test_a_single_worker_tries_nothing(fleet: Fleet) -> None:
    fleet.alias("3", trial="4", permille=500)
    worker = fleet.add("a")
    assert worker.starts("one") == "3"
    assert told(worker.serves()) == stay("3")


@pytest.mark.parametrize(("live", "permille", "wanted"), [(2, 10, 1), (4, 500, 2), (5, 500, 3), (6, 999, 5)])
def test_as_many_workers_try_a_version_as_its_share_is_of_all(
    fleet: Fleet, live: int, permille: int, wanted: int
) -> None:
    fleet.serving("3", *"abcdef"[:live])
    fleet.alias("3", trial="4", permille=permille)
    fleet.settle()
    assert sorted(fleet.versions().values()) == ["3"] * (live - wanted) + ["4"] * wanted


# Rolling over


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_workers_roll_over_one_at_a_time(fleet: Fleet, names: str) -> None:
    fleet.serving("3", *names)
    fleet.alias("4", "3")
    moved = fleet.settle()
    assert sorted(moved) == [(name, "4") for name in names]
    assert all(told(worker.ask()) == stay("4") for worker in fleet.workers.values())


def test_a_worker_whose_turn_has_not_come_claims_all(fleet: Fleet) -> None:
    first, second, third = fleet.serving("3", "a", "b", "c")
    fleet.alias("4", "3")
    second.busy = 4
    assert told(first.ask()) == go("4")
    assert told(second.ask()) == stay("3")
    first.drains()
    assert told(third.ask()) == stay("3")
    assert first.starts("again") == "4"
    assert told(second.ask()) == stay("3"), "the turn is over only when the worker serves"
    first.serves()
    assert told(second.ask()) == go("4")


def test_whoever_was_told_to_move_is_told_so_again_until_it_serves(fleet: Fleet) -> None:
    first, second = fleet.serving("3", "a", "b")
    fleet.alias("4", "3")
    for _ in range(3):
        assert told(first.ask()) == go("4")
        fleet.pass_time(8)
        assert told(second.ask()) == stay("3")


def test_a_worker_that_is_the_last_of_a_version_stays_until_its_lane_is_empty(fleet: Fleet) -> None:
    first, last = fleet.serving("3", "a", "b")
    bind(fleet, "3")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4"), "it is not the last: the other one goes on with what is bound"
    first.drains()
    assert told(last.ask()) == stay("3"), "nobody else serves anything, so it claims all"
    first.starts("again")
    first.serves()
    assert told(last.ask()) == stay("3", Serve.OWN_LANE)
    fleet.bench.submit("chat/new")
    assert last.claim() == ["chat/bound"]
    last.busy = 1
    assert told(last.ask()) == stay("3", Serve.OWN_LANE)
    assert first.claim() == ["chat/new"]
    last.busy = 0
    assert told(last.ask()) == go("4")


def test_the_only_worker_begins_nothing_new_before_it_changes(fleet: Fleet) -> None:
    (only,) = fleet.serving("3", "a")
    only.busy = 1
    fleet.alias("4", "3")
    fleet.bench.submit("chat/waits")
    assert told(only.ask()) == stay("3", Serve.OWN_LANE)
    assert only.claim() == []
    only.busy = 0
    assert told(only.ask()) == go("4")


def test_the_only_worker_goes_on_where_there_is_nothing_to_change_to(fleet: Fleet) -> None:
    (only,) = fleet.serving("3", "a")
    only.busy = 1
    fleet.alias("4")
    fleet.bench.queue.refuse(who=only.who, version="4", reason="it does not load")
    assert told(only.ask()) == stay("3")


def test_the_last_worker_of_a_version_does_not_stay_for_ever(fleet: Fleet) -> None:
    fleet.bench.submit("chat/pinned", pinned="3")
    (last,) = fleet.serving("3", "a")
    fleet.serving("4", "b")
    fleet.alias("4", "3")
    fleet.pass_time(VERSION_WAIT_S - 4)
    assert told(last.ask()) == stay("3", Serve.OWN_LANE)
    fleet.pass_time(4)
    assert told(last.ask()) == go("4", Serve.OWN_LANE)


def test_suspects_of_an_old_version_keep_its_last_worker_too(fleet: Fleet) -> None:
    last, other = *fleet.serving("3", "a"), *fleet.serving("4", "b")
    bind(fleet, "3")
    fleet.alias("4", "3")
    lease = fleet.bench.lease(last.boot, version="3", fingerprint="f3")
    for _ in range(2):
        fleet.bench.queue.park([lease_key(lease)], strike=True)
        if fleet.bench.row("chat/bound").strikes < 2:
            lease = fleet.bench.lease(last.boot, version="3", fingerprint="f3")
    assert fleet.bench.row("chat/bound").lane == "suspect@3"
    assert told(last.ask()) == stay("3", Serve.OWN_LANE)
    assert last.claim() == ["chat/bound"]
    assert told(other.ask()) == stay("4")


def test_an_alias_that_is_moved_on_meanwhile_is_followed(fleet: Fleet) -> None:
    first, second = fleet.serving("3", "a", "b")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4")
    fleet.alias("5", "4")
    assert told(first.ask()) == go("5")
    first.drains()
    assert first.starts("again") == "5"
    first.serves()
    assert told(second.ask()) == go("5")


def test_an_alias_that_is_moved_back_ends_the_turn(fleet: Fleet) -> None:
    first, second = fleet.serving("3", "a", "b")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4")
    fleet.alias("3", "4")
    assert told(first.ask()) == stay("3")
    assert told(second.ask()) == stay("3")
    state = fleet.bench.queue.read_switch()
    assert state is not None
    assert (state.turn, state.target, state.previous, state.seq) == ("", "3", "4", 2)


# Who dies


def test_a_worker_that_is_killed_on_its_way_goes_on_where_it_was(fleet: Fleet) -> None:
    first, second = fleet.serving("3", "a", "b")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4")
    assert first.starts("again") == "4"
    assert first.starts("once more") == "4"
    assert told(second.ask()) == stay("3")
    first.serves()
    assert told(second.ask()) == go("4")


def test_the_turn_of_a_worker_that_does_not_come_back_ends_after_a_minute(fleet: Fleet) -> None:
    first, second, _ = fleet.serving("3", "a", "b", "c")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4")
    fleet.pass_time(ABSENT_S - 4, silent=("a",))
    assert told(second.ask()) == stay("3")
    fleet.pass_time(4, silent=("a",))
    assert told(second.ask()) == go("4")


def test_the_turn_of_a_worker_that_loads_in_silence_ends_later(fleet: Fleet) -> None:
    first, second, _ = fleet.serving("3", "a", "b", "c")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4")
    first.starts("again")
    fleet.pass_time(LOADING_S - 4, silent=("a",))
    assert told(second.ask()) == stay("3")
    fleet.pass_time(4, silent=("a",))
    assert told(second.ask()) == go("4")


def test_a_worker_that_asks_while_it_drains_keeps_its_turn(fleet: Fleet) -> None:
    first, second = fleet.serving("3", "a", "b")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4")
    for _ in range(3):
        fleet.pass_time(LOADING_S / 2)
        assert told(first.ask()) == go("4")
        assert told(second.ask()) == stay("3")


def test_a_killed_worker_does_not_keep_others_from_being_the_last(fleet: Fleet) -> None:
    """Its row stays behind, and counts for as long as it may be silent."""
    dead, last = fleet.serving("3", "a", "b")
    fleet.serving("4", "c")
    fleet.bench.submit("chat/pinned", pinned="3")
    fleet.alias("4", "3")
    fleet.pass_time(3 * LEASE_S, silent=(dead.name,))
    assert told(last.ask()) == stay("3", Serve.OWN_LANE)


# Versions that do not load


def test_a_refused_version_is_left_alone_and_everybody_serves_the_one_before(fleet: Fleet) -> None:
    first, second = fleet.serving("3", "a", "b")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4")
    first.drains()
    first.starts("again")
    for _ in range(2):
        fleet.bench.queue.refuse(who=first.who, version="4", reason="its header is damaged")
    assert first.starts("once more") == "3"
    assert told(first.serves()) == stay("3")
    assert told(second.ask()) == stay("3")
    state = fleet.bench.queue.read_switch()
    assert state is not None
    assert (state.effective, state.refused, state.turn) == ("3", {"4": "its header is damaged"}, "")


def test_a_refused_version_is_tried_anew_once_the_alias_is_moved_to_it_again(fleet: Fleet) -> None:
    first, _ = fleet.serving("3", "a", "b")
    fleet.alias("4", "3")
    fleet.bench.queue.refuse(who=first.who, version="4", reason="its header is damaged")
    assert told(first.ask()) == stay("3")
    fleet.alias("3", "4")
    assert told(first.ask()) == stay("3")
    fleet.alias("4", "3")
    assert told(first.ask()) == go("4")


def test_a_target_that_was_refused_with_none_before_it_is_gone_for_by_nobody_who_serves(fleet: Fleet) -> None:
    (worker,) = fleet.serving("2", "a")
    fleet.alias("3")
    fleet.bench.queue.refuse(who=worker.who, version="3", reason="out of memory")
    assert told(worker.ask()) == stay("2")


def test_three_processes_that_end_while_they_load_refuse_a_version(fleet: Fleet) -> None:
    worker, other = fleet.serving("3", "a", "b")
    fleet.alias("4", "3")
    assert told(worker.ask()) == go("4")
    assert [worker.starts(boot) for boot in ("one", "two", "three")] == ["4", "4", "4"]
    assert worker.starts("four") == "3"
    state = fleet.bench.queue.read_switch()
    assert state is not None
    assert state.refused == {"4": "its process ended 3 times while it loaded version 4 on host/a"}
    assert (state.turn, state.effective) == ("", "3")
    assert told(other.ask()) == stay("3")


def test_processes_that_ended_before_one_came_to_serve_are_forgotten(fleet: Fleet) -> None:
    fleet.alias("4", "3")
    worker = fleet.add("a")
    for life in range(6):
        assert worker.starts(f"life {life}") == "4"
        if life % 3 == 2:
            worker.serves()
    state = fleet.bench.queue.read_switch()
    assert state is not None
    assert (state.refused, state.tries) == ({}, {})


def test_a_trial_that_kills_what_loads_it_is_a_trial_no_longer(fleet: Fleet) -> None:
    fleet.serving("3", "a")
    fleet.alias("3", trial="4", permille=100)
    second = fleet.add("b")
    assert [second.starts(boot) for boot in ("one", "two", "three", "four")] == ["4", "4", "4", "3"]
    assert told(second.serves()) == stay("3")


def test_a_pinned_job_of_a_version_that_did_not_load_fails_with_the_reason(fleet: Fleet) -> None:
    (worker,) = fleet.serving("3", "a")
    fleet.alias("4", "3")
    fleet.bench.submit("chat/pinned", pinned="4")
    fleet.bench.queue.refuse(who=worker.who, version="4", reason="its header is damaged")
    fleet.pass_time(VERSION_WAIT_S + 2 * LEASE_S)
    row = fleet.bench.row("chat/pinned")
    assert row.state is JobState.FAILED
    assert row.reason == "no worker serves version 4 any more: it did not load: its header is damaged"


# Trials


def test_a_trial_worker_too_many_goes_back(fleet: Fleet) -> None:
    fleet.serving("3", "a", "b")
    fleet.serving("4", "c", "d")
    fleet.alias("3", trial="4", permille=100)
    assert fleet.settle() == [("c", "3")]
    assert told(fleet.workers["d"].ask()) == stay("4", Serve.OWN_LANE)


def test_an_old_worker_goes_to_the_trial_before_one_of_the_target_does(fleet: Fleet) -> None:
    fleet.serving("3", "a", "b")
    (old,) = fleet.serving("2", "c")
    fleet.alias("3", "2", trial="4", permille=300)
    assert told(fleet.workers["a"].ask()) == stay("3")
    assert told(old.ask()) == go("4")


def test_the_one_worker_of_the_target_is_not_taken_for_a_trial(fleet: Fleet) -> None:
    (first,) = fleet.serving("3", "a")
    fleet.alias("3", trial="4", permille=500)
    second = fleet.add("b")
    second.boot, second.loading = "one", "3"
    second.register()
    assert told(first.ask()) == stay("3"), "the other one only loads"
    second.version = "3"
    second.register()
    assert told(first.ask()) == go("4")


def test_workers_of_a_withdrawn_trial_claim_for_its_lane_until_it_is_their_turn(fleet: Fleet) -> None:
    fleet.serving("3", "a", "b")
    first, second = fleet.serving("4", "c", "d")
    fleet.alias("3", trial="4", permille=500)
    fleet.alias("3")
    assert told(first.ask()) == go("3", Serve.OWN_LANE)
    assert told(second.ask()) == stay("4", Serve.OWN_LANE)
    fleet.move(first)
    assert told(second.ask()) == go("3", Serve.OWN_LANE)


def test_a_trial_that_is_promoted_is_served_by_who_tried_it_at_once(fleet: Fleet) -> None:
    old, tried = *fleet.serving("3", "a"), *fleet.serving("4", "b")
    fleet.alias("3", trial="4", permille=500)
    assert told(tried.ask()) == stay("4", Serve.OWN_LANE)
    fleet.alias("4", "3")
    assert told(tried.ask()) == stay("4")
    assert told(old.ask()) == go("4")


# Visits


def test_a_worker_of_the_target_visits_an_old_version_that_jobs_wait_for(fleet: Fleet) -> None:
    first, second = fleet.serving("4", "a", "b")
    fleet.alias("4", "3")
    fleet.bench.submit("chat/pinned", pinned="2")
    assert told(first.ask()) == go("2")
    assert told(second.ask()) == stay("4"), "it has not its turn, and one is on its way"
    assert fleet.move(first) == "2"
    assert told(first.ask()) == stay("2", Serve.OWN_LANE)
    assert told(second.ask()) == stay("4")
    fleet.pass_time(3 * VERSION_WAIT_S)
    assert told(first.ask()) == stay("2", Serve.OWN_LANE), "somebody else serves the target"
    assert first.claim() == ["chat/pinned"]
    first.busy = 1
    assert told(first.ask()) == stay("2", Serve.OWN_LANE)
    first.busy = 0
    assert told(first.ask()) == go("4", Serve.OWN_LANE)
    assert fleet.move(first) == "4"
    assert told(first.ask()) == stay("4")


def test_a_single_worker_visits_when_nothing_waits_for_it(fleet: Fleet) -> None:
    (worker,) = fleet.serving("4", "a")
    fleet.alias("4", "3")
    fleet.bench.submit("chat/pinned", pinned="2")
    fleet.bench.submit("chat/any")
    assert told(worker.ask()) == stay("4")
    assert worker.claim() == ["chat/any"]
    worker.busy = 1
    assert told(worker.ask()) == stay("4")
    worker.busy = 0
    assert told(worker.ask()) == go("2")


def test_a_single_worker_does_not_visit_for_ever_while_others_wait(fleet: Fleet) -> None:
    (worker,) = fleet.serving("4", "a")
    fleet.alias("4", "3")
    fleet.bench.submit("chat/pinned", pinned="2")
    assert told(worker.ask()) == go("2")
    fleet.move(worker)
    fleet.pass_time(2 * VERSION_WAIT_S)
    assert told(worker.ask()) == stay("2", Serve.OWN_LANE)
    fleet.bench.submit("chat/any")
    assert told(worker.ask()) == go("4", Serve.OWN_LANE)


@pytest.mark.parametrize("lane", ["local-0123456789ab", "3"])
def test_nobody_visits_what_has_no_number_or_did_not_load(fleet: Fleet, lane: str) -> None:
    first, _ = fleet.serving("4", "a", "b")
    fleet.alias("4", "3")
    fleet.bench.queue.refuse(who=first.who, version="3", reason="its header is damaged")
    fleet.bench.submit("chat/pinned", pinned=lane)
    assert told(first.ask()) == stay("4")


def test_nobody_visits_what_somebody_serves_or_loads(fleet: Fleet) -> None:
    first, _ = fleet.serving("4", "a", "b")
    (old,) = fleet.serving("2", "c")
    fleet.alias("4", "2")
    fleet.bench.submit("chat/pinned", pinned="2")
    assert told(first.ask()) == stay("4")
    assert told(old.ask()) == stay("2", Serve.OWN_LANE)


# The copy


def test_the_copy_of_an_alias_never_goes_back(fleet: Fleet) -> None:
    queue = fleet.bench.queue
    assert queue.switch(seq=7, target="4", previous="3").seq == 7
    before = fleet.bench.dump()
    assert queue.switch(seq=6, target="3").seq == 7
    assert queue.switch(seq=7, target="3").seq == 7
    assert queue.switch(seq=7, target="4", previous="3").seq == 7
    assert fleet.bench.dump() == before


def test_a_share_that_is_none_is_refused() -> None:
    for permille in (0, 1000, -1):
        with pytest.raises(ValueError, match="1 to 999"):
            switch(seq=1, target="3", trial="4", permille=permille)


@pytest.mark.parametrize(
    "fields", [{b"seq": b"first"}, {b"seq": b"1", b"tries:a": b"4"}, {b"seq": b"1", b"target": b"\xff"}]
)
def test_a_copy_that_cannot_be_read_is_refused(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedDocument):
        parse_switch(fields)


@pytest.mark.parametrize(
    "row",
    [
        [1, "chat/a", "4", "finished", -1, 0, 0],
        [1, "chat/a", "4", "gone", -1, 0, 0, 0],
        [1, "chat/a", "4", "finished", "soon", 0, 0, 0],
        [1, 7, "4", "finished", -1, 0, 0, 0],
    ],
)
def test_an_outcome_that_cannot_be_read_is_refused(row: list[object]) -> None:
    with pytest.raises(MalformedDocument):
        parse_outcomes({b"4": b"1", b"4:1": pack(row)})


@pytest.mark.parametrize("trial", [False, True])
def test_a_process_that_is_loaded_beside_another_is_the_same_worker(fleet: Fleet, *, trial: bool) -> None:
    first, second = fleet.serving("3", "a", "b")
    if trial:
        fleet.alias("3", trial="4", permille=100)
    else:
        fleet.alias("4", "3")
    assert told(first.ask()) == go("4")
    beside = Follower(fleet.bench, "a+", "beside")
    fleet.workers["a+"] = beside
    beside.who = first.who
    assert beside.starts("beside") == "4"
    assert told(first.ask()) == go("4"), "what loads the version is this worker itself"
    assert told(second.ask()) == stay("3")
    beside.serves()
    assert told(second.ask()) == (stay("3") if trial else go("4"))


def test_a_visit_that_is_needed_no_more_ends_before_it_begins(fleet: Fleet) -> None:
    first, second = fleet.serving("4", "a", "b")
    fleet.alias("4", "3")
    fleet.bench.submit("chat/pinned", pinned="2")
    assert told(first.ask()) == go("2")
    fleet.bench.queue.cancel("chat/pinned")
    assert told(first.ask()) == stay("4")
    assert told(second.ask()) == stay("4")
