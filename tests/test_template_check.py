"""A chat template is tried in a child process, which is killed if need be, before this one compiles it."""

from __future__ import annotations

import logging
import os
import time

import psutil
import pytest

from headpond.errors import EngineUnavailable
from headpond_workers.engines.templates.chat_template import MAX_TEMPLATE_CHARS
from headpond_workers.engines.templates.template_check import ProbeLimits, check_template, check_template_within

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
BUSY = "{% for i in range(300) %}{% for j in range(300) %}{% endfor %}{% endfor %}x"
"""Many steps, all of them within the budget."""
SLOW = "{% for i in range(300000) %}{{ ('x' * 4000000)[:0] }}{% endfor %}x"
"""Steps within the budget that fill 4 MB each, 1.2 TB in all: on any processor more time than a limit here allows."""
GREEDY = "".join(f"{{% set s{index} = 'x' * 4000000 %}}" for index in range(80)) + "x"
"""320 MB, in values of a size that is allowed."""


def check(source: str, limits: ProbeLimits | None = None) -> None:
    check_template_within(limits or ProbeLimits(), source, **TOKENS)


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


@pytest.mark.parametrize("source", [CHATML, "{{ bos_token }}{{ messages[-1].content }}{{ eos_token }}", BUSY, GREEDY])
def test_a_template_within_its_bounds_passes(source: str) -> None:
    before = children()
    check_template(source, **TOKENS)
    assert children() == before


def test_a_template_that_refuses_a_system_message_passes_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        check(WITHOUT_SYSTEM)
    assert [record.getMessage() for record in caplog.records] == [
        "template_refuses roles=system,user reason='no system role'"
    ]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages", "unexpected end of template"),
        ("{{ raise_exception('only tools') }}", "does not render a plain user message: only tools"),
        ("{{ messages[0].tools.name }}", "does not render a plain user message: .*tools"),
        ("{{ messages[0].content + 1 }}", "does not render a plain user message"),
        ("{{ ''.__class__.__mro__ }}", "does not render a plain user message"),
        ("x" * (MAX_TEMPLATE_CHARS + 1), str(MAX_TEMPLATE_CHARS + 1)),
        ("{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}", "takes more than .* steps"),
        ("{{ 'a' * 10**9 }}", "builds something of 1000000000"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recurses too deep"),
        ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "cannot be used: too many statically nested blocks"),
        ("{% if 1 %}" * 150 + "{% endif %}" * 150, "cannot be used: too many levels of indentation"),
    ],
    ids=[
        "syntax",
        "refusal",
        "missing key",
        "type",
        "way out",
        "size",
        "endless",
        "memory",
        "depth",
        "blocks",
        "indent",
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_its_fault(source: str, reason: str) -> None:
    with pytest.raises(EngineUnavailable, match=reason) as failure:
        check(source)
    assert "chat template" in str(failure.value)


def test_a_template_that_takes_too_long_is_killed() -> None:
    before, started = children(), time.monotonic()
    with pytest.raises(EngineUnavailable, match=r"stopped: it takes more than 0\.2 s\."):
        check(SLOW, ProbeLimits(wall_s=0.2))
    assert time.monotonic() - started < 30
    assert children() == before


def test_a_template_that_takes_too_much_processor_time_is_killed() -> None:
    before = children()
    with pytest.raises(EngineUnavailable, match="stopped: it takes more than 1 s of processor time"):
        check(SLOW, ProbeLimits(cpu_s=1))
    assert children() == before


def test_a_template_that_takes_too_much_memory_is_refused() -> None:
    before = children()
    with pytest.raises(EngineUnavailable, match="more than 256 MiB of memory"):
        check(GREEDY, ProbeLimits(memory_bytes=256 << 20))
    assert children() == before


def test_the_child_sees_nothing_of_the_environment_that_it_does_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "not a number")  # an interpreter does not start with it
    check(CHATML)
    assert os.environ["PYTHONHASHSEED"] == "not a number"


def test_text_that_no_file_should_hold_reaches_the_child_as_it_is() -> None:
    tokens = {"bos_token": "\udcff \u65e5", "eos_token": ""}
    with pytest.raises(EngineUnavailable, match='seen: "\udcff \u65e5"'):
        check_template("{{ raise_exception('seen: ' + (bos_token | tojson)) }}", **tokens)
