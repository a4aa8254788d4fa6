"""Whose turn it is (Q6), and invariant 10: what each tenant was served while it had jobs waiting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from headpond.operations import Entry

WEIGHTS = {"mill": 2.0, "weir": 0.5}
"""Of tenants; who is not named has 1."""


def weight(tenant: str) -> float:
    return WEIGHTS.get(tenant, 1.0)


@dataclass(slots=True)
class Turns:
    """Start tags of one band. v: the tag that was last claimed, the highest so far. begun: whether there was one, or a
    rest. paid: until when each tenant's jobs are paid for, in virtual time; without those whose jobs all are."""

    v: float = 0.0
    begun: bool = False
    paid: dict[str, float] = field(default_factory=dict)

    def tag(self, entry: Entry) -> float:
        start = max(self.v, self.paid.get(entry.tenant, 0.0))
        self.paid[entry.tenant] = start + entry.cost / weight(entry.tenant)
        return start

    def refund(self, entry: Entry) -> None:
        """It ended, and nobody ever claimed it."""
        if entry.tenant in self.paid:
            self.paid[entry.tenant] -= entry.cost / weight(entry.tenant)

    def rest(self) -> None:
        """All that was asked for has been served: nobody owes anything."""
        if self.paid:
            self.v, self.begun = max(self.v, *self.paid.values()), True
            self.paid.clear()

    def claimed(self, tag: float) -> None:
        self.v, self.begun = max(self.v, tag), True

    def forget_paid_up(self) -> None:
        if self.begun:
            self.paid = {tenant: paid for tenant, paid in self.paid.items() if paid > self.v}


@dataclass(slots=True)
class _Race:
    """Two tenants that both have jobs waiting: how far apart they were since that began."""

    ahead: float = 0.0
    least: float = 0.0
    most: float = 0.0
    bound: float = 0.0


@dataclass(slots=True)
class Shares:
    """Served cost over weight, for each pair of tenants of one band that have jobs waiting.

    A tenant's jobs that wait for another version, or that ended unserved before others of it that have their turns
    by then, put it off what it is due by no fault of the order: it is left out until its next jobs begin at V again.
    """

    races: dict[tuple[str, str], _Race] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    largest: dict[str, float] = field(default_factory=dict)
    """Cost over weight of each tenant's largest job since its turns last began at V: also one that runs by now."""

    def unsettle(self, tenant: str) -> None:
        self.unsettled.add(tenant)
        self.largest.setdefault(tenant, 0.0)

    def rest(self) -> None:
        """As Turns.rest: nobody waits, and whoever comes next begins at V."""
        self.races.clear()
        self.unsettled.clear()
        self.largest.clear()

    def served(self, entry: Entry) -> None:
        share = entry.cost / weight(entry.tenant)
        # One that came due and was claimed in the same call was never seen waiting.
        self.largest[entry.tenant] = max(share, self.largest.get(entry.tenant, 0.0))
        for (one, other), race in self.races.items():
            if entry.tenant in (one, other):
                race.ahead += share if entry.tenant == one else -share
                race.least, race.most = min(race.least, race.ahead), max(race.most, race.ahead)

    def observe(self, waiting: Mapping[str, Collection[Entry]], turns: Turns) -> list[str]:
        """waiting: by tenant, what waits in the lane of all and was never claimed. Returns who lags too far."""
        for tenant in [*self.largest]:
            if tenant not in waiting and turns.paid.get(tenant, 0.0) <= turns.v:
                self.unsettled.discard(tenant)
                del self.largest[tenant]
        for tenant, entries in waiting.items():
            share = max(entry.cost for entry in entries) / weight(tenant)
            self.largest[tenant] = max(share, self.largest.get(tenant, 0.0))
        racing = sorted(tenant for tenant in waiting if tenant not in self.unsettled)
        pairs = set(combinations(racing, 2))
        for pair in [pair for pair in self.races if pair not in pairs]:
            del self.races[pair]
        late = []
        for pair in pairs:
            race = self.races.setdefault(pair, _Race())
            race.bound = sum(self.largest[tenant] for tenant in pair)
            if race.most - race.least > race.bound + 1e-6:
                late.append(f"{pair}: {race.most - race.least:g} apart, {race.bound:g} allowed")
        return late


@dataclass(slots=True)
class Fairness:
    """All bands of one queue."""

    turns: dict[str, Turns] = field(default_factory=lambda: defaultdict(Turns))
    shares: dict[str, Shares] = field(default_factory=lambda: defaultdict(Shares))
