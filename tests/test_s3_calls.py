"""How long a request is tried again, on a clock of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from botocore.httpsession import URLLib3SSLError

from headpond.errors import BlobMissing, StorageUnavailable
from headpond_workers.storage import s3_failures
from headpond_workers.storage.s3_client import S3Timeouts
from headpond_workers.storage.s3_failures import SLOW_TRIES, S3Calls

TIMEOUTS = S3Timeouts(connect_s=2, unreachable_s=3, read_s=10, deadline_s=30)


@dataclass
class Clock:
    """In place of the module time."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(s3_failures, "time", clock)
    return clock


@pytest.fixture
def calls() -> S3Calls:
    return S3Calls(url="http://h:1", bucket="b", configured_in="the test", timeouts=TIMEOUTS)


def failing(clock: Clock, lasting_s: float, error: Callable[[], Exception]) -> Callable[[], str]:
    def request() -> str:
        clock.now += lasting_s
        raise error()

    return request


def silence() -> Exception:
    return ReadTimeoutError(endpoint_url="http://h:1")


def nobody() -> Exception:
    return EndpointConnectionError(endpoint_url="http://h:1")


def refusal(status: int, code: str) -> Exception:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]


def test_a_server_that_says_nothing_is_given_up_after_the_deadline_and_one_more_silence(
    clock: Clock, calls: S3Calls
) -> None:
    with pytest.raises(StorageUnavailable, match="no complete reply, 3 tries"):
        calls.run("get", "key", failing(clock, 10, silence))
    assert 30 <= clock.now <= 40


def test_a_server_that_is_not_there_is_given_up_sooner(clock: Clock, calls: S3Calls) -> None:
    with pytest.raises(StorageUnavailable, match="no connection"):
        calls.run("get", "key", failing(clock, 0.01, nobody))
    assert clock.now <= 3 + 0.01, "no try begins after the deadline, and one takes 0.01 s"


def test_errors_of_a_busy_server_are_waited_out_ever_more_patiently(clock: Clock, calls: S3Calls) -> None:
    with pytest.raises(StorageUnavailable, match="503 SlowDown"):
        calls.run("get", "key", failing(clock, 0.01, lambda: refusal(503, "SlowDown")))
    assert clock.now <= 30 + 0.01, "no try begins after the deadline, and one takes 0.01 s"
    assert max(clock.slept) <= 1
    assert max(clock.slept[:2]) <= 0.1
    assert len(clock.slept) < 90


def test_what_brought_bytes_may_go_on_beyond_the_deadline(clock: Clock, calls: S3Calls) -> None:
    moved = [0]

    def request() -> str:
        clock.now += 20
        if moved[0] == 10:
            return "whole"
        moved[0] += 1
        raise silence()

    assert calls.run("read", "key", request, moved=lambda: moved[0]) == "whole"
    assert clock.now > 200


def test_a_try_that_was_long_on_a_slow_line_leaves_time_for_another_but_not_for_ever(
    clock: Clock, calls: S3Calls
) -> None:
    tries = []

    def request() -> str:
        tries.append(clock.now)
        clock.now += 100
        if len(tries) == SLOW_TRIES + 1 and may_end:
            return "stored"
        raise silence()

    may_end = True
    assert calls.run("put", "key", request) == "stored"
    tries.clear()
    may_end = False
    with pytest.raises(StorageUnavailable):
        calls.run("put", "key", request)
    assert len(tries) == SLOW_TRIES + 1


def test_an_answer_that_no_try_will_change_is_passed_on_at_once(clock: Clock, calls: S3Calls) -> None:
    with pytest.raises(BlobMissing):
        calls.run("get", "key", failing(clock, 0.01, lambda: refusal(404, "NoSuchKey")))
    assert not clock.slept


@pytest.mark.parametrize(
    "error",
    [silence, nobody, lambda: URLLib3SSLError("bad record"), lambda: refusal(409, "ConditionalRequestConflict")],
    ids=["silence", "nobody", "broken TLS", "conflict"],
)
def test_a_request_without_a_clear_answer_is_sent_again(
    error: Callable[[], Exception], clock: Clock, calls: S3Calls
) -> None:
    tries = iter([error, error])

    def request() -> str:
        for failure in tries:
            raise failure()
        return "answer"

    assert calls.run("put", "key", request) == "answer"
    assert len(clock.slept) == 2
