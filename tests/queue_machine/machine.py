"""The machine: all rules together, on one server."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from queue_machine.going_back import GoingBack
from queue_machine.moments import Moments
from queue_machine.preemption import Preemption
from queue_machine.switching import Switching
from queue_machine.world import World
from queue_machine.zombies import Zombies

STEPS_AN_EXAMPLE = 250
EXAMPLES_A_PART = 10
PARTS = 100_000
"""At most, of one seed: no two seeds share one."""


class QueueMachine(Preemption, Zombies, Moments, Switching, GoingBack):
    @initialize(storage=st.booleans(), restarts=st.integers(0, 15))
    def meet_the_server(self, storage: bool, restarts: int) -> None:
        # Few examples restart the real server; in the others it fails over in a moment.
        self.restarts = 1 if restarts == 0 else 0
        self.begin(storage=storage)


@dataclass(frozen=True, slots=True)
class Ran:
    """steps: rules that were run. calls: of scripts, repeats included. reached: see Model."""

    steps: int
    calls: int
    fail_overs: int
    real_restarts: int
    reached: Counter[str]


def run(world: World, *, seed: int, steps: int, shrink: bool = False) -> Ran:
    """Run at least so many steps, the same for the same seed. Raises what a failed check raises.

    shrink: look for a shorter way to a failure, which takes minutes.
    """
    machine: Any = type(QueueMachine.__name__, (QueueMachine,), {"world": world, "reached": Counter()})
    calls = world.calls
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    limits = settings(
        max_examples=min(EXAMPLES_A_PART, -(-steps // STEPS_AN_EXAMPLE)),
        stateful_step_count=STEPS_AN_EXAMPLE,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    # Hypothesis leaves out rules at random, and gives an example up where none is left that may be taken. So how many
    # examples make so many steps is not known beforehand.
    for part in range(steps):
        if machine.steps >= steps:
            break
        run_state_machine_as_test(hypothesis.seed(seed * PARTS + part)(machine), settings=limits)
    return Ran(machine.steps, world.calls - calls, machine.fail_overs, machine.real_restarts, machine.reached)
