"""What a stored request says by itself: its digest, sampling and seed, beside those that the result names. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from headpond.provenance import Provenance
from headpond.requests import JobRequest, digest_of
from headpond.wire import Header
from headpond_workers.made_by import applied
from headpond_workers.verification.verdicts import Check, Verdict, compare


def request_check(header: Header, request: JobRequest, made_by: Provenance | None) -> Check:
    """Whether the request is the one that was submitted, and the one that the result names."""
    found = digest_of(request.asked(), pinned=header.pinned, turn=header.turn)
    named = header.digest if made_by is None or made_by.request_digest is None else made_by.request_digest
    if header.digest != found:
        return Check("request", Verdict.DIFFERS, header.digest, found, "it is not what was submitted under this digest")
    return compare("request", named, found)


def request_checks(job_id: str, header: Header, request: JobRequest, made_by: Provenance) -> Iterator[Check]:
    """All that needs no engine."""
    yield request_check(header, request, made_by)
    if request.input is None:
        yield compare("sampling", _shown(made_by.sampling), _shown(applied(request.sampling)))
        stored = None if made_by.seed is None else str(made_by.seed)
        yield compare("seed", stored, str(request.seed_for(job_id)))


def _shown(sampling: Mapping[str, Any]) -> str:
    return json.dumps(dict(sampling), sort_keys=True, ensure_ascii=False, default=str)
