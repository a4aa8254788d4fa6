"""What tenants have paid, as the queue reckons it (Q6): part of a segment and of a snapshot. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from headpond.errors import MalformedDocument
from headpond_workers.storage.sealed import MAX_TEXT, require


@dataclass(frozen=True, slots=True)
class BandTimes:
    """virtual: the band's virtual time. paid: tenant -> the virtual time up to which its jobs are paid for."""

    virtual: float
    paid: Mapping[str, float]


Fair = Mapping[str, BandTimes]
"""By band."""


def pack_fair(fair: Fair | None) -> object:
    return None if fair is None else {band: [times.virtual, dict(times.paid)] for band, times in fair.items()}


def unpack_fair(value: object, *, schema: str) -> Fair | None:
    """Raises MalformedDocument."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise MalformedDocument(schema, f"fair is a {type(value).__name__}")
    return {_name(band, schema): _unpack_times(times, schema) for band, times in value.items()}


def _unpack_times(value: object, schema: str) -> BandTimes:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], dict):
        raise MalformedDocument(schema, "fair holds something else than a time and a map")
    paid = {_name(tenant, schema): _time(time, schema) for tenant, time in value[1].items()}
    return BandTimes(_time(value[0], schema), paid)


def _name(value: object, schema: str) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise MalformedDocument(schema, "fair holds a name that is none")
    return value


def _time(value: object, schema: str) -> float:
    # A bool is an int to isinstance.
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MalformedDocument(schema, f"fair holds a {type(value).__name__} for a time")
    require(value >= 0 and math.isfinite(value), schema, "fair holds a time that is none")
    return float(value)
