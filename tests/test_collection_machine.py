"""Random interleavings of pushes, moves, deletions, collectors, crashes and zombies; and holes that they find."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from collection_machine import CollectionMachine
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.collection.gc import Collected, Collector
from headpond_workers.checkpoints.collection.gc_mark import Mark
from headpond_workers.checkpoints.delete import delete_version
from model_pusher import ModelPush

EXAMPLES_TO_A_FINDING = 600
STEPS_TO_A_FINDING = 12


class Whole(CollectionMachine):
    """With the real code; in the end nothing is left that nothing leads to."""

    def teardown(self) -> None:
        try:
            # After a failure that error is the one to tell.
            if sys.exc_info()[0] is None:
                self.settle()
        finally:
            super().teardown()


TestCollection = Whole.TestCase
TestCollection.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


class DeletesWhatWasCondemned(Collector):
    """Without a second mark."""

    def _count(self, done: Collected, keys: tuple[str, ...], known: Mark, sizes: dict[str, int]) -> list[str]:
        return [key for key in keys if key in sizes]


class DoesNotMissItsIntent(ModelPush):
    """A push that completes its version whoever dropped its intent."""

    def intent_is_gone(self, txn: str) -> bool:
        return False


def delete_without_swapping_aliases(aliases: Aliases, number: int) -> object:
    """The deletion looks at the aliases once it has begun, and swaps none of them."""
    aliases.swap_each = aliases.all  # type: ignore[method-assign]
    return delete_version(aliases, number)


HOLES: dict[str, dict[str, object]] = {
    "no second mark": {
        "collector": DeletesWhatWasCondemned,
        "cast": (("push", 3, ""), ("collect", 0, "list_sizes")),
    },
    "no look at the intent": {
        "pusher": DoesNotMissItsIntent,
        "cast": (("push", 3, "put_once"),),
    },
    "deletion does not swap aliases": {
        "delete": staticmethod(delete_without_swapping_aliases),
        "cast": (("promote", 2, ""), ("delete", 2, "")),
    },
}
"""Each with a cast that it takes, so that few examples do."""


@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.replace(" ", "_"))
def test_the_machine_finds_a_hole(hole: str) -> None:
    machine = type("WithAHole", (CollectionMachine,), HOLES[hole])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES_TO_A_FINDING,
                stateful_step_count=STEPS_TO_A_FINDING,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
