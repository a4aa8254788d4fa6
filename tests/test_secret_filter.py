"""Secrets do not come out: not in a log line, whatever it was made of, and not in what is stored of an error."""

from __future__ import annotations

import base64
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headpond.tables import SecretRef
from headpond_workers.redaction import FRAGMENT_CHARS, MASK, Secrets
from headpond_workers.secret_filter import LINE_FORMAT, SecretFilter, learn_references

KEY = 'sk-aB3/x+9"Qz\\7ü%41'
"""With every character that some encoding writes otherwise."""


@pytest.fixture
def secrets() -> Secrets:
    found = Secrets()
    found.learn(KEY)
    return found


@pytest.fixture
def logged(secrets: Secrets) -> tuple[logging.Logger, Callable[[], str]]:
    """A logger, and what it has written so far."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(SecretFilter(logging.Formatter(LINE_FORMAT + " %(field)s", defaults={"field": "-"}), secrets))
    # One of its own, whose records no handler of pytest sees.
    logger = logging.Logger("test_secret_filter")
    logger.addHandler(handler)
    return logger, out.getvalue


def assert_hidden(text: str, *, key: str = KEY) -> None:
    assert MASK in text
    for chars in range(4, len(key) + 1):
        for at in range(len(key) - chars + 1):
            assert key[at : at + chars] not in text


FORMS = {
    "as it is": KEY,
    "percent": quote(KEY, safe=""),
    "percent, slashes kept": quote(KEY),
    "percent, small": quote(KEY, safe="").replace("%2F", "%2f").replace("%C3%BC", "%c3%bc").replace("%5C", "%5c")
    .replace("%2B", "%2b"),
    "form": quote_plus(KEY),
    "JSON": json.dumps(KEY)[1:-1],
    "JSON, unicode": json.dumps(KEY, ensure_ascii=False)[1:-1],
    "repr": repr(KEY)[1:-1],
    "repr of bytes": repr(KEY.encode())[2:-1],
    "ascii": ascii(KEY)[1:-1],
    "hexadecimal": KEY.encode().hex(),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 for urls": base64.urlsafe_b64encode(KEY.encode()).decode(),
    **{
        f"Basic, {user!r}": base64.b64encode(f"{user}:{KEY}".encode()).decode()
        for user in ("", "u", "us", "use", "user")
    },
    "Basic, with more behind": base64.b64encode(f"u:{KEY}:tail of it".encode()).decode(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("before", "after"), [("said ", " and left"), ('{"key": "', '"}'), ("Basic ", "\n")])
def test_a_secret_is_masked_in_every_form(secrets: Secrets, form: str, before: str, after: str) -> None:
    redacted = secrets.redact(f"{before}{FORMS[form]}{after}")
    assert redacted == f"{before}{MASK}{after}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changed", [str.lower, str.upper, str.swapcase])
def test_a_secret_is_masked_in_capitals_and_in_small_letters(
    secrets: Secrets, form: str, changed: Callable[[str], str]
) -> None:
    assert secrets.redact(f"said {changed(FORMS[form])} and left") == f"said {MASK} and left"


@pytest.mark.parametrize("form", ["percent", "JSON", "hexadecimal", "base64", "Basic, 'user'"])
def test_a_secret_is_masked_that_lost_its_case_before_it_was_encoded(secrets: Secrets, form: str) -> None:
    encode: dict[str, Callable[[str], str]] = {
        "percent": quote,
        "JSON": lambda key: json.dumps(key)[1:-1],
        "hexadecimal": lambda key: key.encode().hex(),
        "base64": lambda key: base64.b64encode(key.encode()).decode(),
        "Basic, 'user'": lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
    }
    assert secrets.redact(f"said {encode[form](KEY.lower())} and left") == f"said {MASK} and left"
    assert secrets.redact(f"said {encode[form](KEY.upper())} and left") == f"said {MASK} and left"


def test_parts_and_pieces_of_a_secret_are_masked_whatever_their_case(secrets: Secrets) -> None:
    secrets.learn("Horse-Battery-Staple")
    assert secrets.redact("http://horse-battery... (HTTP 302)") == f"http://{MASK}... (HTTP 302)"
    assert secrets.redact("BATTERY-STAPLE without its horse") == f"{MASK} without its {MASK}"
    assert secrets.redact("a=horse b=-bat c=TERY- d=stapLE") == f"a={MASK} b={MASK} c={MASK} d={MASK}"
    assert secrets.redact("a HORSE, a staple") == "a HORSE, a staple"


def test_small_pieces_are_masked_beside_a_long_one_too() -> None:
    secrets = Secrets()
    secrets.learn("Horse-Battery-Staple")
    assert secrets.redact("a=Horse-Battery b=-St c=aple") == f"a={MASK} b={MASK} c={MASK}"


def test_letters_whose_small_form_is_longer_move_no_mask(secrets: Secrets) -> None:
    secrets.learn("İstanbul-ßtraße")
    assert secrets.redact("İİß said İstanbul-ßtraße ßİ") == f"İİß said {MASK} ßİ"
    assert secrets.redact(f"İİ {KEY.lower()} ΑΣ.") == f"İİ {MASK} ΑΣ."


def test_a_long_text_costs_little(secrets: Secrets) -> None:
    secrets.learn("0-a-generated-token-of-forty-characters")
    text = "İ a Generated text of words, " * 2000 + KEY.lower()
    began = time.perf_counter()
    assert secrets.redact(text).endswith(f", {MASK}")
    assert time.perf_counter() - began < 5.0  # it takes about 0.05 s


def test_a_line_is_masked_whatever_it_was_made_of(
    logged: tuple[logging.Logger, Callable[[], str]],
) -> None:
    logger, written = logged
    logger.info("key=%s", KEY)
    logger.info(f"key={KEY}")
    logger.info("a=%s b=%s", KEY[:10], KEY[10:])
    logger.info("request headers=%r", {"Authorization": f"Bearer {KEY}"})
    logger.info("extra", extra={"field": KEY})
    logger.info("split extra %s", KEY[:9], extra={"field": KEY[9:]})
    logger.info("thrice a=%s b=%s c=%s", KEY[:6], KEY[6:12], KEY[12:])
    logger.info("stack", stack_info=True)
    try:
        try:
            raise ValueError(f"refused {KEY}")
        except ValueError as error:
            raise RuntimeError(f"while calling with {KEY!r}") from error
    except RuntimeError:
        logger.exception("engine_failed job=%s", "chat/1")
    text = written()
    assert_hidden(text)
    assert text.count(MASK) >= 10
    assert "engine_failed job=chat/1 -\nTraceback" in text
    assert "ValueError: refused ****" in text
    assert "RuntimeError: while calling with '****'" in text


def test_a_line_that_cannot_be_formatted_is_masked_too(
    logged: tuple[logging.Logger, Callable[[], str]], capsys: pytest.CaptureFixture[str]
) -> None:
    logger, written = logged
    logger.info("number=%d", KEY)
    assert "log_line_failed" in written()
    assert_hidden(written())
    # Python's own report of such a line would print the arguments.
    assert capsys.readouterr() == ("", "")


def test_a_traceback_is_not_kept_unmasked_for_another_handler(
    logged: tuple[logging.Logger, Callable[[], str]],
) -> None:
    logger, _ = logged
    records: list[logging.LogRecord] = []
    keeper = logging.Handler()
    keeper.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(keeper)
    try:
        raise ValueError(KEY)
    except ValueError:
        logger.exception("failed")
    logger.removeHandler(keeper)
    assert records[0].exc_text is None


ORDINARY = (
    "2026-11-26 10:00:00,123 INFO headpond_workers.worker ready model=chat version=local-0123456789ab slots=4",
    "job_ended job=chat/01K9ABCDEFGHJKMNPQRSTVWXYZ state=finished tokens=64",
    "redis_awaited error=Cannot reach Redis at redis://127.0.0.1:6379/0 (Connection refused).",
)


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_lines_survive(secrets: Secrets, line: str) -> None:
    for word in ("correct horse battery staple", "a-generated-token-0f8c", "x"):
        secrets.learn(word)
    assert secrets.redact(line) == line


def test_a_short_part_survives_alone_and_is_masked_beside_a_long_one() -> None:
    secrets = Secrets()
    secrets.learn("horse-battery-staple")
    assert secrets.redact("a horse, a staple") == "a horse, a staple"
    assert secrets.redact("battery-staple without its horse") == "**** without its ****"


def test_a_short_secret_is_masked_where_it_stands_alone() -> None:
    secrets = Secrets()
    secrets.learn("pw")
    assert secrets.redact("redis://:pw@host/ and pwd") == "redis://:****@host/ and pwd"
    secrets.learn("abcd")
    assert secrets.redact("xabcdx") == "x****x"


def test_nothing_is_a_secret_at_first_and_no_secret_is_in_a_repr(secrets: Secrets) -> None:
    assert Secrets().redact(f"key={KEY}") == f"key={KEY}"
    assert "sk-" not in repr(secrets)
    secrets.learn("")
    assert secrets.redact("ab") == "ab"


alphabet = st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/+=%\"'\\\n ü€")


@settings(deadline=None)
@given(
    key=st.text(alphabet, min_size=12, max_size=60),
    cuts=st.lists(st.integers(3, 40), max_size=4),
    between=st.lists(st.sampled_from([" ", " b=", "\n", "', '"]), min_size=5, max_size=5),
)
def test_a_key_that_is_split_over_fields_does_not_come_out(key: str, cuts: list[int], between: list[str]) -> None:
    """However it is cut into pieces of three and more, no piece of four or more stays."""
    secrets = Secrets()
    secrets.learn(key)
    pieces, rest = [], key
    for cut in cuts:
        if 3 <= cut <= len(rest) - 3:
            pieces.append(rest[:cut])
            rest = rest[cut:]
    pieces.append(rest)
    line = "field=" + "".join(piece + gap for piece, gap in zip(pieces, between, strict=False))
    assume(not any(piece in "field=" for piece in pieces))
    redacted = secrets.redact(line)
    for piece in pieces:
        if len(piece) >= FRAGMENT_CHARS:
            assert piece not in redacted
    assert any(len(piece) >= 4 for piece in pieces)
    assert MASK in redacted


@settings(deadline=None)
@given(st.text(max_size=200), st.lists(st.text(min_size=1, max_size=30), max_size=4))
def test_any_text_can_be_redacted(text: str, keys: list[str]) -> None:
    secrets = Secrets()
    for key in keys:
        secrets.learn(key)
    redacted = secrets.redact(text)
    if not keys:
        assert redacted == text
    for key in keys:
        if len(key) >= 8:
            assert key not in redacted


def test_a_log_line_costs_little() -> None:
    secrets = Secrets()
    for number in range(6):
        secrets.learn(f"{number}-a-generated-token-of-forty-characters")
    began = time.perf_counter()
    for _ in range(1000):
        secrets.redact(ORDINARY[0])
    assert time.perf_counter() - began < 5.0  # 5 ms a line would be felt; it takes about 0.1 ms


def test_a_secret_is_learnt_as_it_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_THE_TEST", "from-the-environment")
    file = tmp_path / "key"
    file.write_text("from-the-file-of-it\n")
    secrets = Secrets()
    tables = {
        "headers": {"X": SecretRef(env="KEY_OF_THE_TEST")},
        "others": ({"deep": [SecretRef(file=file)]}, SecretRef(env="NOT_SET")),
    }
    learn_references(secrets, tables)
    assert secrets.redact("a from-the-environment b from-the-file-of-it c") == "a **** b **** c"


def test_what_ends_a_thread_or_the_process_is_masked() -> None:
    code = (
        "import sys, threading\n"
        "from headpond_workers.redaction import Secrets\n"
        "from headpond_workers.secret_filter import start_logging\n"
        "secrets = Secrets(); start_logging(secrets); secrets.learn(sys.argv[1])\n"
        "def fail(): raise ValueError('thread ' + sys.argv[1])\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "raise RuntimeError('process ' + sys.argv[1])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, KEY], capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 1
    assert "thread_died" in ended.stderr
    assert "ValueError: thread ****" in ended.stderr
    assert "RuntimeError: process ****" in ended.stderr
    assert_hidden(ended.stderr)
