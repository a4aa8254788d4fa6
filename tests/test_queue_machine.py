"""Random calls on the queue's scripts, and after each of them the protocol's invariants. See queue_machine/."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headpond.scripts import load_script
from headpond_workers.supervision.embedded_valkey import ValkeyProcess, running_valkey
from queue_machine.machine import Ran, run
from queue_machine.mutations import MUTATIONS, Mutation
from queue_machine.world import World

FEW_STEPS = 3_000
MANY_STEPS = 100_000
STEPS_TO_A_FINDING = 20_000
SCRIPTS = (
    "append", "assign", "cancel", "chain", "claim", "dead", "depths", "finish", "fsck", "hello", "open", "park",
    "refuse", "register", "renew", "session", "submit", "switch", "tick", "trim", "unregister",
)  # fmt: skip
SELDOM = (
    "band at rest", "batch before its turn", "begun anew", "claim asked again", "claim of one lane",
    "claim without a sweep", "delayed job expired", "dropped", "ends in one call", "gap", "job moved back",
    "leases moved", "next turn", "no turn for a slot given up", "outcome noted", "queued job expired", "reader ahead",
    "refund",
    "running job cancelled", "running job dead", "running job expired", "running job failed", "running job finished",
    "settled together", "share begun", "share ended", "share given up", "stream dropped", "strike by a fault",
    "strike by silence", "strike forgiven", "suspect alone", "suspect at the front", "tenants apart", "told to move",
    "told to park", "turn committed", "turn on another head", "turn skipped", "unregister has to wait",
    "version given up", "version gone", "visit",
)  # fmt: skip
"""What a long run must have come to. An invariant of what never happened was not checked."""


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A server for this module alone: its data are wiped, and it is killed."""
    with running_valkey(tmp_path_factory.mktemp("queue-machine")) as process:
        yield process


@pytest.fixture
def world(valkey: ValkeyProcess) -> Iterator[World]:
    world = World(valkey)
    yield world
    world.close()


def test_the_invariants_hold_over_a_few_random_steps(world: World) -> None:
    ran = run(world, seed=1, steps=FEW_STEPS)
    assert ran.steps >= FEW_STEPS
    assert ran.calls > ran.steps
    assert ran.fail_overs > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_invariants_hold_over_many_random_steps(world: World) -> None:
    ran: Ran = run(world, seed=5, steps=MANY_STEPS)
    assert ran.steps >= MANY_STEPS
    assert ran.real_restarts >= 20
    assert ran.fail_overs >= 200
    never = [what for what in SELDOM if not ran.reached[what]]
    assert not never, f"no step came to: {never}"


def test_the_same_seed_takes_the_same_steps(world: World) -> None:
    first, second = (run(world, seed=7, steps=300) for _ in range(2))
    assert first == second


def test_each_mutation_changes_a_script() -> None:
    untouched = [m.rule for m in MUTATIONS if all(m.load(name) == load_script(name) for name in SCRIPTS)]
    assert not untouched
    assert len({m.rule for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.rule.replace(" ", "_"))
def test_the_machine_finds_a_rule_that_is_not_kept(valkey: ValkeyProcess, mutation: Mutation) -> None:
    world = World(valkey, scripts=mutation.load)
    try:
        with pytest.raises(AssertionError):
            run(world, seed=1, steps=STEPS_TO_A_FINDING)
    finally:
        world.close()
