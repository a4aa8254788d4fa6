"""What a queue's copy of an alias says, beside what its workers serve: for tables and documents. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headpond.switching import Switch


@dataclass(frozen=True, slots=True)
class AliasState:
    """switch: of the queue. serving: the version of each worker that is ready."""

    switch: Switch
    serving: Sequence[str]

    @property
    def rolls_over(self) -> bool:
        """Whether a worker has still to change."""
        wanted = {self.switch.effective, self.switch.trial}
        return any(version not in wanted for version in self.serving)

    def __str__(self) -> str:
        """In a few words: `4`; `3 -> 4 (1/3)` while workers change over; `3 (4 refused)`; `3, 10% try 4`."""
        switch, target = self.switch, self.switch.effective
        text = target or "nothing"
        if self.rolls_over:
            old = sorted({version for version in self.serving if version not in (target, switch.trial)})
            text = f"{','.join(old)} -> {text} ({self.serving.count(target)}/{len(self.serving)})"
        if switch.target in switch.refused:
            text += f" ({switch.target} refused)"
        if switch.trial and switch.trial not in switch.refused:
            text += f", {switch.permille / 10:g}% try {switch.trial}"
        return text

    def document(self) -> dict[str, Any]:
        """As `headpond status --json` and `models list --json` have it."""
        switch = self.switch
        return {
            "target": switch.target,
            "previous": switch.previous,
            "trial": switch.trial,
            "share_permille": switch.permille,
            "seq": switch.seq,
            "refused": dict(switch.refused),
            "rolls_over": self.rolls_over,
        }
