"""Q14: jobs of one session run in order, and its head moves only with the end of a turn."""

from __future__ import annotations

import pytest

from headpond import JobState, upkeep
from headpond import session_operations as moves
from headpond.commits import conversation
from headpond.errors import CommitGone
from headpond.operations import LeaseStatus, Submitted
from headpond.session_operations import SessionAnswer
from headpond.turns import ROOT, Policy
from queue_bench import LEASE_S, Bench, entry, tokens
from session_turns import end_turn, take_turn, turn_of


def head_of(bench: Bench, session: str = "s") -> str:
    row = bench.queue.session(session)
    return row.head if row else ""


def waiting(bench: Bench) -> list[str]:
    return [raw.decode() for raw in bench.server.read("ZRANGE", bench.keys.named("waiting"), 0, -1)]


def test_only_the_first_job_of_a_session_can_be_claimed(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", "chat/c", session="s")
    bench.submit("chat/other", session="t")
    assert waiting(bench) == ["chat/b", "chat/c"]
    assert (bench.queue.depths().ready, bench.queue.depths().waiting) == (2, 2)
    leases = bench.claim(slots=4).leases
    assert [lease.id for lease in leases] == ["chat/a", "chat/other"]
    assert bench.queue.session_jobs("s") == ["chat/a", "chat/b", "chat/c"]
    assert end_turn(bench, leases[0], turn_of(bench, leases[0])).status is LeaseStatus.DONE
    assert [lease.id for lease in bench.claim(slots=4).leases] == ["chat/b"]


def test_a_turn_moves_the_head_with_the_end_of_its_job(bench: Bench) -> None:
    first, second = take_turn(bench, "chat/a"), take_turn(bench, "chat/b")
    row = bench.queue.session("s")
    assert row is not None
    assert (row.head, row.turns, row.version, row.policy) == (second.id, 2, "v1", Policy.MIGRATE)
    chain = bench.queue.chain("s", second.id)
    assert [commit.id for commit in chain] == [first.id, second.id]
    assert [m.content for m in conversation(chain)] == ["chat/a", "to chat/a", "chat/b", "to chat/b"]


def test_an_end_that_is_repeated_commits_once(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", session="s")
    lease = bench.lease()
    turn = turn_of(bench, lease)
    assert end_turn(bench, lease, turn).status is LeaseStatus.DONE
    state = bench.dump()
    assert end_turn(bench, lease, turn).status is LeaseStatus.DONE
    assert bench.dump() == state


def test_a_turn_on_another_head_than_the_sessions_goes_back_into_the_queue_without_its_tokens(bench: Bench) -> None:
    first = take_turn(bench, "chat/a")
    bench.submit("chat/b", session="s")
    lease = bench.lease(fingerprint="fingerprint-v1")
    bench.append(lease, tokens(0, 3))
    assert end_turn(bench, lease, turn_of(bench, lease, head=""), offset=3).status is LeaseStatus.FENCED
    assert head_of(bench) == first.id
    row = bench.row("chat/b")
    assert (row.state, row.offset, row.strikes) == (JobState.QUEUED, 0, 0)
    again = bench.lease(fingerprint="fingerprint-v1")
    assert end_turn(bench, again, turn_of(bench, again)).status is LeaseStatus.DONE
    assert bench.queue.session_jobs("s") == []


def test_a_turn_that_is_made_again_takes_the_place_of_its_first_commit(bench: Bench) -> None:
    """As after a restore that has the commit of a job and not its end."""
    first = take_turn(bench, "chat/a")
    bench.submit("chat/b", session="s")
    lease = bench.lease(fingerprint="fingerprint-v1")
    lost = turn_of(bench, lease, version="lost")
    assert end_turn(bench, lease, lost).status is LeaseStatus.DONE
    bench.submit("chat/c", session="s")
    lease = bench.lease(fingerprint="fingerprint-v1")
    again = turn_of(bench, lease, parent=first.id)
    assert end_turn(bench, lease, again).status is LeaseStatus.DONE
    assert [c.id for c in bench.queue.chain("s", head_of(bench))] == [first.id, again.commit.id]
    assert bench.queue.turn(lost.commit.id) is None


@pytest.mark.parametrize("how", ["failed", "cancelled", "expired", "dead"])
def test_a_turn_that_fails_leaves_the_last_good_commit_and_the_next_one_tells_of_it(bench: Bench, how: str) -> None:
    first = take_turn(bench, "chat/a")
    bench.submit("chat/b", session="s", deadline_s=100 * LEASE_S)
    bench.submit("chat/c", session="s")
    lease = bench.lease()
    if how == "failed":
        bench.finish(lease, offset=0, state=JobState.FAILED)
    elif how == "cancelled":
        bench.queue.cancel("chat/b")
    elif how == "expired":
        bench.clock.move(101 * LEASE_S)
        bench.queue.tick()
    else:
        for _ in range(3):
            bench.queue.park([(lease.id, lease.fence)], strike=True, reason="it broke")
            lease = bench.lease() if bench.row("chat/b").state is JobState.QUEUED else lease
    assert bench.row("chat/b").state is JobState(how)
    row = bench.queue.session("s")
    assert row is not None
    assert (row.head, row.skipped) == (first.id, ("chat/b",))
    assert lease.id == ("chat/b" if how != "dead" else lease.id)
    held = bench.claim(slots=2).leases if bench.row("chat/c").state is JobState.QUEUED else (lease,)
    assert [each.id for each in held] == ["chat/c"]
    assert end_turn(bench, held[0], turn_of(bench, held[0])).status is LeaseStatus.DONE
    row = bench.queue.session("s")
    assert row is not None
    assert (row.skipped, row.turns) == ((), 2)


def test_a_job_that_waits_in_its_session_is_cancelled_or_expires_where_it_is(bench: Bench) -> None:
    bench.submit("chat/a", session="s")
    bench.submit("chat/b", session="s")
    bench.submit("chat/c", session="s", deadline_s=5)
    bench.submit("chat/d", session="s")
    lease = bench.lease()
    assert bench.queue.cancel("chat/b") is JobState.CANCELLED
    bench.clock.move(5)
    bench.queue.tick()
    assert bench.row("chat/c").state is JobState.EXPIRED
    assert (waiting(bench), bench.queue.session_jobs("s")) == (["chat/d"], ["chat/a", "chat/d"])
    # The turn that runs was on its way before they ended: it does not tell of them, the next one does.
    before = turn_of(bench, lease)
    assert end_turn(bench, lease, moves.TurnEnd(before.commit, before.document, before.head, ())).status is (
        LeaseStatus.DONE
    )
    row = bench.queue.session("s")
    assert row is not None
    assert row.skipped == ("chat/b", "chat/c")


def test_a_job_that_comes_back_stays_the_first_of_its_session(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", session="s")
    lease = bench.lease()
    bench.queue.park([(lease.id, lease.fence)])
    assert waiting(bench) == ["chat/b"]
    assert bench.lease().id == "chat/a"
    bench.let_leases_end()
    assert [each.id for each in bench.claim(slots=4).leases] == ["chat/a"]


def test_a_waiting_job_has_the_turn_of_its_own_submit(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", session="s")
    bench.submit(*(f"chat/other{n}" for n in range(3)))
    lease = bench.lease()
    end_turn(bench, lease, turn_of(bench, lease))
    assert bench.lease().id == "chat/b"


def test_a_bound_on_the_queue_counts_jobs_that_wait_in_a_session(bench: Bench) -> None:
    many = [entry(f"chat/{n}", session="s") for n in range(4)]
    assert bench.queue.submit(many, max_queued=3) == [Submitted.NEW] * 3 + [Submitted.FULL]


def test_a_session_takes_no_more_than_its_bound_of_jobs(bench: Bench) -> None:
    for at in range(0, 1000, 250):
        bench.queue.submit([entry(f"chat/{at + n}", session="s") for n in range(250)])
    assert bench.submit("chat/more", session="s") == [Submitted.CROWDED]
    assert bench.submit("chat/7", session="s") == [Submitted.KNOWN]
    assert bench.submit("chat/else", session="t") == [Submitted.NEW]


def test_a_parent_that_is_not_the_head_is_refused_at_submit_unless_others_come_first(bench: Bench) -> None:
    assert bench.submit("chat/0", session="s", parent="ab" * 32) == [Submitted.MOVED]
    first = take_turn(bench, "chat/a")
    assert bench.submit("chat/b", session="s", parent=ROOT) == [Submitted.MOVED]
    assert bench.queue.run_row("chat/b") is None
    assert bench.submit("chat/c", session="s", parent=first.id) == [Submitted.NEW]
    # By its turn the head may be what it asks for.
    assert bench.submit("chat/d", session="s", parent="cd" * 32) == [Submitted.NEW]
    assert bench.submit("chat/e", session="new", parent=ROOT) == [Submitted.NEW]


def test_under_pin_a_turn_waits_for_the_version_of_the_head_alone(bench: Bench) -> None:
    bench.submit("chat/a", session="s", policy=Policy.PIN)
    lease = bench.lease(version="1")
    end_turn(bench, lease, turn_of(bench, lease, version="1", policy=Policy.PIN))
    bench.submit("chat/b", "chat/c", session="s")
    assert bench.claim("B", version="2", fingerprint="g").leases == ()
    lease = bench.lease(version="1")
    end_turn(bench, lease, turn_of(bench, lease, version="1", policy=Policy.PIN))
    assert bench.row("chat/c").pinned == "1"
    # One that says `migrate` is free to run anywhere.
    bench.submit("chat/d", session="s", policy=Policy.MIGRATE)
    bench.queue.cancel("chat/c")
    assert bench.lease("B", version="2", fingerprint="g").id == "chat/d"


def test_under_pin_a_turn_fails_where_nobody_serves_the_version_any_more(bench: Bench) -> None:
    bench.submit("chat/a", session="s", policy=Policy.PIN)
    lease = bench.lease(version="1")
    done = turn_of(bench, lease, version="1", policy=Policy.PIN)
    end_turn(bench, lease, done)
    bench.submit("chat/b", "chat/c", session="s")
    bench.ticks(*[LEASE_S * 0.4] * 20)
    assert {bench.row(job).state for job in ("chat/b", "chat/c")} == {JobState.FAILED}
    assert "no worker serves version 1" in bench.row("chat/b").reason
    assert head_of(bench) == done.commit.id


def test_a_fork_shares_commits_and_goes_its_own_way(bench: Bench) -> None:
    first, second = take_turn(bench, "chat/a"), take_turn(bench, "chat/b")
    for _ in range(2):
        assert bench.queue.run(moves.fork("s", first, name="f", settled=True)) is SessionAnswer.OK
    third = take_turn(bench, "chat/c", session="f")
    assert [c.id for c in bench.queue.chain("f", third.id)] == [first.id, third.id]
    assert head_of(bench) == second.id
    assert bench.queue.run(moves.fork("s", second, name="f", settled=True)) is SessionAnswer.TAKEN
    assert bench.queue.run(moves.fork("s", third, name="g", settled=True)) is SessionAnswer.UNKNOWN
    assert bench.queue.run(moves.fork("nobody", first, name="g", settled=True)) is SessionAnswer.GONE


def test_deleting_a_session_keeps_the_commits_that_a_fork_needs(bench: Bench) -> None:
    first, second = take_turn(bench, "chat/a"), take_turn(bench, "chat/b")
    bench.queue.run(moves.fork("s", first, name="f", settled=True))
    assert bench.queue.run(moves.delete("s")) is SessionAnswer.OK
    assert bench.queue.run(moves.delete("s")) is SessionAnswer.GONE
    assert (bench.queue.turn(second.id), bench.queue.session("s")) == (None, None)
    assert [c.id for c in bench.queue.chain("f", first.id)] == [first.id]
    assert bench.queue.run(moves.delete("f")) is SessionAnswer.OK
    for name in ("turns", "links", "sessions", "changed", "lapses"):
        assert bench.server.read("EXISTS", bench.keys.named(name)) == 0


def test_a_rollback_can_be_taken_back(bench: Bench) -> None:
    first, second = take_turn(bench, "chat/a"), take_turn(bench, "chat/b")
    for _ in range(2):
        assert bench.queue.run(moves.rollback("s", first)) is SessionAnswer.OK
    row = bench.queue.session("s")
    assert row is not None
    assert (row.head, row.turns, row.left) == (first.id, 1, (second.id,))
    third = take_turn(bench, "chat/c")
    assert third.parent == first.id
    assert bench.queue.run(moves.rollback("s", second)) is SessionAnswer.OK
    row = bench.queue.session("s")
    assert row is not None
    assert (row.head, row.left) == (second.id, (third.id,))
    assert bench.queue.run(moves.rollback("s", None)) is SessionAnswer.OK
    assert head_of(bench) == ""
    assert bench.queue.run(moves.delete("s")) is SessionAnswer.OK
    assert bench.server.read("EXISTS", bench.keys.named("turns"), bench.keys.named("links")) == 0


def test_of_the_heads_that_a_session_left_the_latest_32_are_kept(bench: Bench) -> None:
    first = take_turn(bench, "chat/first")
    left = []
    for n in range(34):
        left.append(take_turn(bench, f"chat/{n}").id)
        assert bench.queue.run(moves.rollback("s", first)) is SessionAnswer.OK
    row = bench.queue.session("s")
    assert row is not None
    assert row.left == tuple(left[2:])
    assert [bench.queue.turn(commit) is not None for commit in left] == [False] * 2 + [True] * 32


def test_nothing_moves_while_a_job_of_the_session_waits_or_runs(bench: Bench) -> None:
    first = take_turn(bench, "chat/a")
    bench.submit("chat/b", session="s")
    state = bench.dump()
    for step in (moves.rollback("s", None), moves.delete("s"), moves.fork("s", first, name="f", settled=True)):
        assert bench.queue.run(step) is SessionAnswer.BUSY
    assert bench.dump() == state
    # A commit never changes: who names one may fork it at any time.
    assert bench.queue.run(moves.fork("s", first, name="f", settled=False)) is SessionAnswer.OK


def test_a_session_goes_when_its_retention_is_over_and_nothing_of_it_waits(bench: Bench) -> None:
    meta, tenants = bench.keys.named("meta"), bench.keys.named("retention")
    kept = take_turn(bench, "chat/kept", session="for-ever")
    bench.raw.hset(meta, "session_retention_ms", 50_000)
    bench.raw.hset(tenants, "mill", "0 0 0")
    take_turn(bench, "chat/a")
    bench.submit("chat/mill", session="of-mill", tenant="mill")
    lease = bench.lease(fingerprint="fingerprint-v1")
    end_turn(bench, lease, turn_of(bench, lease, session="of-mill"))
    bench.ticks(*[4] * 10)
    second = take_turn(bench, "chat/b")
    bench.ticks(*[4] * 10)
    assert head_of(bench) == second.id
    bench.ticks(*[4] * 3)
    assert sorted(bench.queue.session_names(limit=9)) == ["for-ever", "of-mill"]
    assert bench.queue.turn(second.id) is None
    # It was looked at when its table said `for ever`, and is again within a day.
    bench.ticks(*[3_600] * 25)
    assert bench.queue.session_names(limit=9) == ["of-mill"]
    assert bench.queue.turn(kept.id) is None


def test_a_session_in_use_outlives_its_retention(bench: Bench) -> None:
    bench.raw.hset(bench.keys.named("meta"), "session_retention_ms", 20_000)
    first = take_turn(bench, "chat/a")
    bench.submit("chat/b", session="s")
    bench.ticks(*[4] * 10)
    assert head_of(bench) == first.id
    bench.queue.cancel("chat/b")
    bench.ticks(*[4] * 6)
    assert head_of(bench) == ""


def test_a_chain_that_lacks_a_commit_is_refused_and_a_rollback_mends_it(bench: Bench) -> None:
    first, second = take_turn(bench, "chat/a"), take_turn(bench, "chat/b")
    bench.raw.hdel(bench.keys.named("turns"), first.id)
    with pytest.raises(CommitGone):
        bench.queue.chain("s", second.id)
    assert bench.queue.run(moves.rollback("s", None)) is SessionAnswer.OK


def test_a_long_chain_is_read_in_pages(bench: Bench) -> None:
    made = [take_turn(bench, f"chat/{n}").id for n in range(205)]
    assert [commit.id for commit in bench.queue.chain("s", made[-1])] == made


def test_turns_are_journalled_with_what_they_left_behind(stored: Bench) -> None:
    first = take_turn(stored, "chat/a")
    stored.queue.run(moves.fork("s", first, name="f", settled=True))
    stored.queue.run(moves.delete("s"))
    stored.queue.run(moves.delete("f"))
    entries = stored.queue.journal(limit=99)
    assert [(e.kind, e.job_id) for e in entries] == [
        ("submit", "chat/a"), ("commit", first.id), ("session", "s"), ("end", "chat/a"), ("session", "f"),
        ("session", "s"), ("session", "f"), ("commit", first.id),
    ]  # fmt: skip
    assert [bool(e.row) for e in entries if e.kind == "session"] == [True, True, False, False]


def test_a_queue_that_is_closed_moves_no_session(stored: Bench) -> None:
    first = take_turn(stored, "chat/a")
    stored.queue.run(upkeep.open_queue("close", reason="for the test"))
    assert stored.queue.run(moves.rollback("s", None)) is SessionAnswer.CLOSED
    assert head_of(stored) == first.id


def fsck(bench: Bench) -> list[tuple[str, str]]:
    page = bench.queue.run(upkeep.fsck("0", repair=True))
    return [(fault.id, fault.what) for fault in page.faults]


def test_fsck_finds_nothing_where_a_session_is_as_it_should_be(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", "chat/c", session="s")
    lease = bench.lease()
    assert fsck(bench) == []
    end_turn(bench, lease, turn_of(bench, lease))
    assert fsck(bench) == []


def test_fsck_puts_jobs_back_into_their_session_in_order(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", "chat/c", session="s")
    bench.raw.delete(bench.keys.session("s"), bench.keys.named("waiting"))
    assert {job for job, _ in fsck(bench)} >= {"chat/b", "chat/c"}
    assert (bench.queue.session_jobs("s"), waiting(bench)) == (["chat/a", "chat/b", "chat/c"], ["chat/b", "chat/c"])
    assert fsck(bench) == []
    assert [lease.id for lease in bench.claim(slots=4).leases] == ["chat/a"]


def test_fsck_puts_the_job_that_runs_first_in_its_session_again(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", session="s")
    lease = bench.lease()
    bench.raw.lrem(bench.keys.session("s"), 1, "chat/a")
    assert ("chat/a", "running, and not in its session") in fsck(bench)
    assert fsck(bench) == []
    assert bench.queue.session_jobs("s") == ["chat/a", "chat/b"]
    assert bench.claim("B", slots=4).leases == ()
    assert end_turn(bench, lease, turn_of(bench, lease)).status is LeaseStatus.DONE
    assert bench.lease().id == "chat/b"


def test_fsck_goes_past_a_job_that_a_session_waits_for_in_vain(bench: Bench) -> None:
    bench.submit("chat/a", "chat/b", session="s")
    bench.raw.hdel(bench.keys.named("run"), "chat/a")
    bench.raw.zrem(bench.keys.ready("any", "normal"), "chat/a")
    assert fsck(bench) == [("chat/b", "waits in its session for a job that is over")]
    assert [lease.id for lease in bench.claim(slots=4).leases] == ["chat/b"]


def test_a_session_whose_row_cannot_be_read_is_left_as_it_is(bench: Bench) -> None:
    take_turn(bench, "chat/a")
    bench.raw.hset(bench.keys.named("sessions"), "s", b"\xc1 no row")
    bench.submit("chat/b", session="s")
    bench.finish(bench.lease(fingerprint="fingerprint-v1"), offset=0, state=JobState.FAILED)
    assert bench.queue.session_row("s") == b"\xc1 no row"


def test_rows_of_an_older_release_have_no_session(bench: Bench) -> None:
    bench.submit("chat/a")
    raw = bench.server.read("HGET", bench.keys.named("run"), "chat/a")
    older = raw.replace(b"\xdc\x00\x13", b"\xdc\x00\x11")[:-2]
    assert older != raw
    bench.raw.hset(bench.keys.named("run"), "chat/a", older)
    assert (bench.row("chat/a").session, bench.row("chat/a").place) == ("", 0)
    lease = bench.lease()
    assert bench.finish(lease, offset=0).status is LeaseStatus.DONE
