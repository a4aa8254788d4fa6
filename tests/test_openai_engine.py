"""The proxy engine against a real server on loopback that misbehaves: each fault has one outcome, and none kills it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import eventually
from headpond.errors import (
    CapabilityMissing,
    ConfigError,
    EngineError,
    HeadpondError,
    JobPutBack,
    SequenceFailed,
    UpstreamClosed,
)
from headpond.jobs import UNNAMED_TOKEN, FinishReason
from headpond.requests import JobRequest
from headpond.tables import OpenAIModel, SecretRef
from headpond_workers.engines.openai.bodies import check_request
from headpond_workers.engines.openai.engine import OpenAIEngine
from headpond_workers.engines.openai.upstream_memory import MAX_BREAKS, MAX_PUT_BACKS
from headpond_workers.engines.protocol import RelayEngine, RelayFinish, RelayRequest, Verdict
from loopback_certificate import CERTIFICATE, server_context
from misbehaving_server import MisbehavingServer, misbehaving_server

SLOW = ("mute", "silent")
"""Faults that are noticed by a time-out alone."""


def each(*faults: str) -> list[Any]:
    """Parameters; those that take long are marked."""
    return [pytest.param(fault, marks=pytest.mark.slow) if fault in SLOW else fault for fault in faults]


KEY = r"""sk-%7B"quoted'#;\n\x\end"""


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with misbehaving_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_UPSTREAM_KEY", KEY)


def table(url: str, **settings: Any) -> OpenAIModel:
    quick = {
        "api_key": {"env": "TEST_UPSTREAM_KEY"}, "upstream_model": "m", "slots": 4, "max_retries": 1, "backoff_s": 0.01,
        "first_token_timeout_s": 1.0, "token_timeout_s": 1.0, "connect_timeout_s": 2.0,
        "max_response_bytes": 1 << 20, "max_event_bytes": 1 << 16,
    }  # fmt: skip
    return OpenAIModel.model_validate({"engine": "openai", "base_url": url, **quick, **settings})


@pytest.fixture
def engine(server: MisbehavingServer) -> Iterator[OpenAIEngine]:
    engine = OpenAIEngine(table(server.url))
    yield engine
    engine.close()


class Answer:
    """What one call of relay gave."""

    def __init__(self, engine: RelayEngine, prompt: str = "hello", *, stop_after: int | None = None, **asked: Any):
        self.ids: list[int] = []
        self.pieces: list[str] = []
        self.calls: list[float] = []
        self.finish: RelayFinish | None = None
        self.error: HeadpondError | None = None
        self._stop_after = stop_after
        asked = {"prompt": prompt, **asked}
        request = RelayRequest(
            "chat/a", JobRequest.model_validate({k: v for k, v in asked.items() if v is not None}), seed=1
        )
        try:
            self.finish = engine.relay(request, self._emit)
        except HeadpondError as error:
            self.error = error

    def _emit(self, ids: Any, pieces: Any) -> Verdict:
        self.calls.append(time.monotonic())
        self.ids += ids
        self.pieces += pieces
        stop = self._stop_after is not None and len(self.ids) >= self._stop_after
        return Verdict.STOP if stop else Verdict.GO

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def words(count: int) -> str:
    return "".join(f"word{n} " for n in range(count))


def test_an_answer_comes_in_pieces_without_ids_and_with_the_servers_counts(engine: OpenAIEngine) -> None:
    answer = Answer(engine)
    assert answer.text == words(12)
    assert set(answer.ids) == {UNNAMED_TOKEN}
    assert len(answer.ids) == len(answer.pieces) == 12
    assert answer.finish == RelayFinish(FinishReason.STOP, 7, 12)


def test_what_was_asked_for_is_sent_and_nothing_of_the_environment(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "of-the-environment")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Other: of-the-environment")
    engine = OpenAIEngine(
        table(server.url, headers={"X-Team": "blue", "X-Secret": {"env": "TEST_UPSTREAM_KEY"}}, project="p1",
              sampling={"top_k": "top_k", "repetition_penalty": "repeat_penalty"}, response_formats=["json_schema"])
    )  # fmt: skip
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "prompt": None, "max_tokens": 5, "stop": ["a", "b", "c", "d", "e"],
        "sampling": {"temperature": 0.5, "top_p": 0.9, "seed": 7, "top_k": 3, "repetition_penalty": 1.5},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }  # fmt: skip
    answer = Answer(engine, **asked)
    engine.close()
    assert answer.finish == RelayFinish(FinishReason.LENGTH, 7, 5)
    (request,) = server.received
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "m", "messages": asked["messages"], "max_tokens": 5, "stop": ["a", "b", "c", "d"],
        "temperature": 0.5, "top_p": 0.9, "seed": 7, "top_k": 3, "repeat_penalty": 1.5, "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }  # fmt: skip
    assert request.key == KEY
    assert (request.headers["x-team"], request.headers["x-secret"]) == ("blue", KEY)
    assert request.headers["openai-project"] == "p1"
    assert "openai-organization" not in request.headers
    assert request.headers["accept-encoding"] == "identity"
    assert "of-the-environment" not in str(request.headers)


def test_completions_and_the_other_name_of_max_tokens_are_a_matter_of_the_table(server: MisbehavingServer) -> None:
    bare = OpenAIEngine(table(server.url, mode="completions", api_key=None, stream_usage=False))
    assert Answer(bare, "hi", max_tokens=3).text == words(3)
    refused = Answer(bare, messages=[{"role": "user", "content": "x"}], prompt=None)
    assert isinstance(refused.error, SequenceFailed)
    bare.close()
    named = OpenAIEngine(table(server.url, max_tokens_field="max_completion_tokens"))
    assert Answer(named, max_tokens=3).text == words(3)
    named.close()
    first, second = server.received
    assert (first.path, first.body["prompt"], first.body["max_tokens"]) == ("/v1/completions", "hi", 3)
    assert "authorization" not in first.headers
    assert "stream_options" not in first.body
    assert second.body["max_completion_tokens"] == 3
    assert "max_tokens" not in second.body


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"prompt": None, "input": ["x"]}, CapabilityMissing),
        ({"adapter": "a"}, CapabilityMissing),
        ({"grammar": "root ::= [a-z]"}, CapabilityMissing),
        ({"response_format": {"type": "json_object"}}, CapabilityMissing),
        ({"sampling": {"top_k": 3}}, CapabilityMissing),
        ({"stop_token_ids": [3]}, SequenceFailed),
    ],
)
def test_what_the_server_does_not_take_is_refused_before_it_is_asked(
    engine: OpenAIEngine, server: MisbehavingServer, asked: dict[str, Any], error: type[HeadpondError]
) -> None:
    assert isinstance(Answer(engine, **asked).error, error)
    assert server.received == []


@pytest.mark.parametrize(
    ("settings", "asked", "remedy"),
    [
        ({}, {"response_format": {"type": "json_object"}}, 'response_formats = ["json_object"] there. Else'),
        (
            {"resume": "continue"},
            {"response_format": {"type": "json_object"}},
            'response_formats = ["json_object"] there. That needs resume = "rewind" ("continue" refuses',
        ),
        (
            {"response_formats": ["json_object"]},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            'response_formats = ["json_object", "json_schema"]',
        ),
        ({}, {"sampling": {"dry_multiplier": 0.5}}, 'under the key `sampling`: sampling = [..., "dry_multiplier"]'),
    ],
)
def test_a_refusal_names_the_key_of_the_table_that_would_allow_it(
    server: MisbehavingServer, settings: dict[str, Any], asked: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(CapabilityMissing) as caught:
        check_request(table(server.url, **settings), JobRequest.model_validate({"prompt": "x", **asked}))
    assert remedy in str(caught.value)
    # The advice is one that the table takes.
    if "response_format" in asked:
        table(
            server.url, response_formats=json.loads(str(caught.value).partition("formats = ")[2].partition(" there")[0])
        )


REFUSED = {
    "bad_request": "HTTP 400",
    "unprocessable": "temperature is out of range",
    "not_found": "HTTP 404",
    "filtered": "content filter",
    "endless_line": "max_event_bytes",
    "endless_event": "max_event_bytes",
    "endless_answer": "max_response_bytes",
    "announced_huge": "max_response_bytes",
    "compressed": "compressed",
    "whole": "the server does not stream",
}
"""Faults that end the job, and what it is told."""


@pytest.mark.parametrize("fault", REFUSED)
def test_a_request_that_the_server_refuses_fails_its_job_with_the_servers_words(
    engine: OpenAIEngine, server: MisbehavingServer, fault: str
) -> None:
    answer = Answer(engine, f"!{fault}")
    assert isinstance(answer.error, SequenceFailed)
    assert REFUSED[fault] in str(answer.error)
    assert server.times(f"!{fault}") == 1
    assert Answer(engine).text == words(12)


FAILED = {
    "error_500": "It broke.",
    "mute": "no step for 1 s",
    "not_sse": "broke off",
    "not_json": "malformed: it is not JSON",
    "not_utf8": "malformed: it is not UTF-8",
    "deep_json": "malformed: it is nested too deep",
    "number": "malformed: an event",
    "choices_map": "malformed: choices",
    "content_number": "malformed: text",
    "choice_text": "malformed: a choice",
    "no_choices": "broke off",
    "html": "text/html",
    "error_200": "no stream of events but application/json",
    "huge_error": "",
    "not_http": "connection broke",
}
"""Faults that may be the server's: tried again, then an error of the job, since the server answers others."""


@pytest.mark.parametrize("fault", each(*FAILED))
def test_a_failure_before_the_answer_is_tried_again_and_is_then_the_jobs_if_others_are_answered(
    engine: OpenAIEngine, server: MisbehavingServer, fault: str
) -> None:
    answer = Answer(engine, f"!{fault}")
    assert type(answer.error) is (SequenceFailed if fault == "huge_error" else EngineError)
    assert FAILED[fault] in str(answer.error)
    assert answer.ids == []
    assert server.times(f"!{fault}") == (1 if fault == "huge_error" else 2)
    assert Answer(engine, f"!{fault}*1" if fault not in ("huge_error", "mute") else "hello").text == words(12)


def test_a_request_that_was_tried_once_is_said_to_have_failed_once(server: MisbehavingServer) -> None:
    engine = OpenAIEngine(table(server.url, max_retries=0))
    assert "failed this request once: " in str(Answer(engine, "!error_500").error)
    engine.close()


CUT = ("cut", "silent", "error_amid", "no_end")


@pytest.mark.parametrize("fault", each(*CUT))
def test_an_answer_that_breaks_off_has_to_begin_anew_and_not_without_end(
    engine: OpenAIEngine, server: MisbehavingServer, fault: str
) -> None:
    first = Answer(engine, f"!{fault}")
    assert isinstance(first.error, JobPutBack)
    assert first.text == words(3)
    again = Answer(engine, f"!{fault}")
    assert isinstance(again.error, SequenceFailed)
    assert "broke off 2 answers" in str(again.error)
    assert Answer(engine).text == words(12)


def test_an_end_without_a_last_word_is_an_end(engine: OpenAIEngine) -> None:
    answer = Answer(engine, "!no_done")
    assert answer.text == words(3)
    assert answer.finish == RelayFinish(FinishReason.STOP)


def test_half_a_character_becomes_a_replacement(engine: OpenAIEngine) -> None:
    assert Answer(engine, "!half_emoji").text == "a?"


@pytest.mark.parametrize("retry_after", ["1", "Thu, 01 Jan 2099 00:00:00 GMT"])
def test_retry_after_is_waited_for_within_its_bound(server: MisbehavingServer, retry_after: str) -> None:
    server.retry_after = retry_after
    engine = OpenAIEngine(table(server.url, retry_after_limit_s=1.0))
    began = time.monotonic()
    answer = Answer(engine, "!rate_limited*1")
    assert answer.text == words(12)
    assert 0.95 < time.monotonic() - began < 3
    # It says that it lives while it waits.
    assert max(b - a for a, b in zip(answer.calls, answer.calls[1:], strict=False)) < 1
    engine.close()


def test_a_date_in_retry_after_is_understood(engine: OpenAIEngine) -> None:
    began = time.monotonic()
    assert Answer(engine, "!rate_limited_until*1").text == words(12)
    assert 0.8 < time.monotonic() - began < 4


@pytest.mark.parametrize(
    "fault", each("rate_limited", "error_503", "error_500", "html", "cut", "mute", "not_found", "whole")
)
def test_a_server_that_serves_nobody_is_no_fault_of_a_job(
    engine: OpenAIEngine, server: MisbehavingServer, fault: str
) -> None:
    server.fault, server.retry_after = fault, "0"
    error = None
    for _ in range(3):
        answer = Answer(engine)
        error = answer.error
        if not isinstance(error, JobPutBack):
            break
    if fault == "cut":
        # It makes some of an answer, so the probe is content.
        assert isinstance(error, SequenceFailed)
        return
    assert isinstance(error, UpstreamClosed)
    assert error.needs_operator == (fault in ("not_found", "whole"))
    with pytest.raises(UpstreamClosed):
        engine.probe()
    server.fault = None
    engine.probe()
    assert Answer(engine).text == words(12)


def test_a_server_that_is_away_is_no_fault_of_a_job(server: MisbehavingServer, engine: OpenAIEngine) -> None:
    server.close()
    answer = Answer(engine)
    assert isinstance(answer.error, UpstreamClosed)
    assert not answer.error.needs_operator
    assert "cannot be reached" in str(answer.error)


@pytest.mark.parametrize("fault", ["wrong_key", "forbidden", "bad_request"])
def test_what_a_server_says_holds_no_key_and_no_control_character(server: MisbehavingServer, fault: str) -> None:
    engine = OpenAIEngine(table(server.url, headers={"X-Secret": {"env": "TEST_UPSTREAM_KEY"}}))
    answer = Answer(engine, f"!{fault}")
    server.fault = None if fault == "bad_request" else fault
    closed = Answer(engine, f"!{fault}").error
    engine.close()
    said = f"{answer.error} {closed}"
    assert isinstance(answer.error, SequenceFailed)
    assert isinstance(closed, SequenceFailed if fault == "bad_request" else UpstreamClosed)
    assert "Incorrect API key provided: ****" in said
    assert "sk-" not in said
    assert "quoted" not in said
    assert "\x1b" not in said
    assert answer.error.__cause__ is None
    assert answer.error.__context__ is None
    assert server.times(f"!{fault}") == 2


@pytest.mark.parametrize(
    ("fault", "said"), [("key_as_kind", "no stream of events but ****"), ("key_as_host", "to ****")]
)
def test_a_key_that_comes_back_in_small_letters_is_hidden(
    monkeypatch: pytest.MonkeyPatch, server: MisbehavingServer, fault: str, said: str
) -> None:
    key = "SK-AbCdEfGhIjKlMnOpQrStUvWxYz0123456789AbCdEfGhIjKlMnOpQrStUvWxYz"
    monkeypatch.setenv("TEST_UPSTREAM_KEY", key)
    engine = OpenAIEngine(table(server.url))
    error = str(Answer(engine, f"!{fault}").error)
    server.fault = fault
    closed = str(Answer(engine).error)
    engine.close()
    for text in (error, closed):
        assert said in text
        assert not any(key[at : at + 6].lower() in text.lower() for at in range(len(key) - 6))


def test_a_server_that_is_too_busy_for_one_job_puts_it_back_without_blame(
    engine: OpenAIEngine, server: MisbehavingServer
) -> None:
    server.retry_after = "0"
    assert isinstance(Answer(engine, "!rate_limited").error, JobPutBack)
    assert server.times("!rate_limited") == 2
    assert isinstance(Answer(engine, "!error_503").error, JobPutBack)
    for _ in range(MAX_PUT_BACKS):
        engine._memory.put_backs.add("chat/a")
    assert type(Answer(engine, "!rate_limited").error) is EngineError


def test_a_request_that_takes_the_server_down_again_and_again_is_suspected(
    engine: OpenAIEngine, server: MisbehavingServer
) -> None:
    errors = []
    for _ in range(MAX_BREAKS):
        server.fault = None
        errors.append(type(Answer(engine, "!crash").error))
    assert errors == [UpstreamClosed, UpstreamClosed, EngineError]


def test_a_proxy_is_the_tables_and_its_password_is_not_shown(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PROXY", f"http://user:pass%40word-5@127.0.0.1:{server.port}")
    with misbehaving_server() as behind:
        engine = OpenAIEngine(table(behind.url, proxy={"env": "TEST_PROXY"}))
        assert Answer(engine).text == words(12)
        server.fault = "error_503"
        error = str(Answer(engine).error)
        engine.close()
        assert behind.received == []
        assert server.received[0].path == f"{behind.url}/chat/completions"
        assert server.received[0].headers["proxy-authorization"].startswith("Basic ")
        assert "word-5" not in error
    monkeypatch.setenv("TEST_PROXY", "user:pass-5@nowhere")
    with pytest.raises(ConfigError, match="no URL") as caught:
        OpenAIEngine(table(server.url, proxy={"env": "TEST_PROXY"}))
    assert "pass-5" not in str(caught.value)


def test_a_certificate_is_checked_before_the_key_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(CERTIFICATE)
    with misbehaving_server(tls=server_context(tmp_path)) as server:
        strange = OpenAIEngine(table(server.url))
        error = Answer(strange).error
        strange.close()
        assert isinstance(error, UpstreamClosed)
        assert error.needs_operator
        assert "certificate is not trusted; check ca_file" in str(error)
        assert server.received == []
        trusted = OpenAIEngine(table(server.url, ca_file=file))
        assert Answer(trusted).text == words(12)
        trusted.close()


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        OpenAIEngine(table("https://127.0.0.1:1/v1", ca_file=file))
    file.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        OpenAIEngine(table("https://127.0.0.1:1/v1", ca_file=file))


def test_a_redirect_is_not_followed(server: MisbehavingServer) -> None:
    with misbehaving_server() as other:
        server.elsewhere = other.url + "/chat/completions"
        engine = OpenAIEngine(table(server.url))
        assert isinstance(Answer(engine, "!redirect").error, SequenceFailed)
        server.fault = "redirect"
        answer = Answer(engine)
        engine.close()
        assert isinstance(answer.error, UpstreamClosed)
        assert answer.error.needs_operator
        assert "redirects to 127.0.0.1" in str(answer.error)
        assert other.received == []


@pytest.mark.parametrize("prompt", ["!mute", "!silent", "!rate_limited", "hello"])
def test_a_cancel_is_heard_within_a_second_and_closes_the_connection(server: MisbehavingServer, prompt: str) -> None:
    server.retry_after, server.token_s = "60", 0.05
    engine = OpenAIEngine(table(server.url, first_token_timeout_s=60, token_timeout_s=60))
    wanted = threading.Event()
    ended: list[tuple[RelayFinish, float]] = []
    request = RelayRequest("chat/a", JobRequest(prompt=prompt), seed=1)

    def run() -> None:
        finish = engine.relay(request, lambda ids, pieces: Verdict.STOP if wanted.is_set() else Verdict.GO)
        ended.append((finish, time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: server.received, what="the request")
    at = time.monotonic()
    wanted.set()
    thread.join(10)
    ((finish, over),) = ended
    assert finish.reason is FinishReason.CANCELLED
    assert over - at < 1
    if prompt != "!rate_limited":
        eventually(lambda: server.dropped == 1, deadline_s=5, what="the server to see that nobody reads")
    engine.close()


def test_slots_run_together(server: MisbehavingServer) -> None:
    server.token_s = 0.05
    engine = OpenAIEngine(table(server.url))
    began = time.monotonic()
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(Answer(engine))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [answer.text for answer in answers] == [words(12)] * 4
    assert time.monotonic() - began < 4 * 12 * 0.05
    engine.close()


def test_requests_a_minute_are_kept(server: MisbehavingServer) -> None:
    engine = OpenAIEngine(table(server.url, requests_per_minute=120))
    began = time.monotonic()
    # The bucket is full at first: 120 at once, then two a second.
    for _ in range(121):
        engine._loop.run(engine._pace.turn(0))
    assert 0.3 < time.monotonic() - began < 3
    engine.close()


def test_a_new_key_is_used_after_its_file_was_changed(server: MisbehavingServer, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old\n")
    engine = OpenAIEngine(table(server.url, api_key=SecretRef(file=file)))
    Answer(engine)
    file.write_text("bad\nkey")
    with pytest.raises(ConfigError, match="api_key"):
        engine.renew_secrets()
    Answer(engine)
    file.write_text("new\n")
    engine.renew_secrets()
    Answer(engine)
    engine.close()
    assert [request.key for request in server.received] == ["old", "old", "new"]


@pytest.mark.parametrize("secret", ["a\nb", "a\rb", "a\x00b", "a\x1bb", "caf\u00e9", " sk-q", "sk-q ", "a\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(tmp_path: Path, secret: str) -> None:
    settings = table("http://127.0.0.1:1/v1", headers={"X-Extra": {"env": "TEST_EXTRA"}})
    with pytest.MonkeyPatch.context() as patch:
        if "\x00" in secret:
            file = tmp_path / "key"
            file.write_text(secret)
            settings = table("http://127.0.0.1:1/v1", headers={"X-Extra": {"file": str(file)}})
        else:
            patch.setenv("TEST_EXTRA", secret)
        with pytest.raises(ConfigError, match=r"headers\.X-Extra") as caught:
            OpenAIEngine(settings)
    assert secret not in str(caught.value)


@pytest.mark.parametrize("fault", ["endless_line", "endless_event"])
def test_an_endless_line_is_read_no_further_than_its_bound(server: MisbehavingServer, fault: str) -> None:
    engine = OpenAIEngine(table(server.url, max_event_bytes=1 << 16, max_response_bytes=48 << 20))
    assert isinstance(Answer(engine, f"!{fault}").error, SequenceFailed)
    engine.close()
    # What is more was in the buffers of the sockets.
    assert server.sent_bytes < 12 << 20


def test_closing_ends_what_runs_and_refuses_what_comes(server: MisbehavingServer) -> None:
    engine = OpenAIEngine(table(server.url, first_token_timeout_s=60))
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(Answer(engine, "!mute")))
    thread.start()
    eventually(lambda: server.received, what="the request")
    engine.close()
    engine.close()
    thread.join(10)
    assert isinstance(answers[0].error, EngineError)
    assert isinstance(Answer(engine).error, EngineError)
