"""Chat templates render as Hugging Face's do, and a hostile one is stopped."""

from __future__ import annotations

import time

import pytest

from headpond.errors import EngineUnavailable, SequenceFailed
from headpond.requests import Message
from headpond_workers.engines.templates.chat_template import MAX_OUTPUT_CHARS, MAX_TEMPLATE_CHARS, ChatTemplate

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = (Message(role="user", content="Hello"),)
BUDGET_DEADLINE_S = 20.0


def template(source: str) -> ChatTemplate:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatTemplate(source, **tokens)


def growing(step: str, *, name: str = "ns") -> str:
    """A template that replaces a text by something larger a hundred times."""
    return (
        f"{{% set {name} = namespace(s='aa') %}}{{% for i in range(99) %}}{{% set {name}.s = "
        f"{step.replace('ns.', name + '.')} %}}{{% endfor %}}"
    )


def test_a_conversation_is_rendered_up_to_the_assistants_turn() -> None:
    conversation = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hi <b>&amp;"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="{{ 7 * 7 }}"),
    )
    assert template(CHATML).render(conversation) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>&amp;<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n{{ 7 * 7 }}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_are_trimmed_and_loop_controls_and_special_tokens_are_there() -> None:
    source = (
        "{{ bos_token }}\n  {% for m in messages %}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{{ m.role | upper }}:{{ m.content | trim }}{{ eos_token }}\n  {% endfor %}\n"
    )
    conversation = (Message(role="user", content=" one "), Message(role="user", content="two"))
    assert template(source).render(conversation) == "<s>\nUSER:one</s>\n"


def test_a_namespace_and_filters_of_real_templates_work() -> None:
    source = (
        "{%- set ns = namespace(system='') -%}{%- for m in messages if m.role == 'system' -%}"
        "{%- set ns.system = m.content -%}{%- endfor -%}{{ ns.system | default('none', true) }}|"
        "{{ messages | map(attribute='role') | join(',') }}|{{ messages[0] | tojson }}|"
        "{{ messages[-1]['content'].strip() }}"
    )
    rendered = template(source).render((Message(role="system", content="<é>"), Message(role="user", content=" x ")))
    assert rendered == '<é>|system,user|{"role": "system", "content": "<é>"}|x'


def test_json_is_not_escaped_for_html() -> None:
    assert template("{{ messages[0].content | tojson }}").render((Message(role="user", content="<a> & 'b' é"),)) == (
        "\"<a> & 'b' é\""
    )


def test_the_clock_is_not_there_so_that_a_prompt_is_the_same_in_every_attempt() -> None:
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}"
    assert template(source).render(HELLO) == "26 Jul 2024"


def test_a_refusal_by_the_template_reaches_the_caller_with_its_reason() -> None:
    source = "{{ raise_exception('Conversation roles must alternate user/assistant') }}"
    with pytest.raises(SequenceFailed, match="roles must alternate"):
        template(source).render(HELLO)


def test_a_template_that_is_not_jinja_is_refused_when_the_model_loads() -> None:
    with pytest.raises(EngineUnavailable, match="chat template"):
        template("{% for m in messages %}")


def test_an_oversized_template_is_refused_with_its_size() -> None:
    with pytest.raises(EngineUnavailable, match=str(MAX_TEMPLATE_CHARS + 1)):
        template("x" * (MAX_TEMPLATE_CHARS + 1))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ (messages | attr('append'))('x') }}",
        "{{ messages.append('x') }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises((SequenceFailed, EngineUnavailable)):
        template(source).render(HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000000) %}x{% endfor %}",
        "{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}",
        "{% for a in ('a' * 4000) %}{% for b in ('a' * 4000) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for a in [[1, 2]] recursive %}{{ loop([a, a]) }}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        growing("ns.s + ns.s"),
        growing("ns.s ~ ns.s"),
        growing("ns.s.replace('a', ns.s)"),
        growing("ns.s | replace('a', ns.s)"),
        growing("[ns.s, ns.s] | join"),
        growing("ns.s.join([ns.s, ns.s])"),
        growing("[ns.s, ns.s]") + "{{ ns.s }}",
        growing("[ns.s, ns.s]") + "{{ ns.s | string }}",
        growing("{'a': ns.s, 'b': ns.s}") + "{{ ns.s | tojson }}",
        growing("(ns.s, ns.s)") + growing("(ns.s, ns.s)", name="other") + "{{ ns.s == other.s }}",
        growing("[[ns.s] * 2000] * 2000") + "{{ ns.s | tojson }}",
        "{% set s = 'a' * 4000000 %}{% set t = 'a' * 4000000 %}{% for i in range(999999) %}{% if s == t %}{% endif %}"
        "{% endfor %}",
        "{{ ['a' * 1000] | batch(1000000000, 'x') | list }}",
        "{{ ([[1]] * 600000) | sum(start=[]) }}",
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    ],
)
def test_a_template_that_would_take_all_time_or_memory_is_stopped(source: str) -> None:
    started = time.monotonic()
    with pytest.raises((SequenceFailed, EngineUnavailable)):
        template(source).render(HELLO)
    assert time.monotonic() - started < BUDGET_DEADLINE_S


def test_a_sum_of_numbers_is_a_sum() -> None:
    source = "{{ [1, 2, 3] | sum }} {{ [{'n': 2}, {'n': 3}] | sum(attribute='n', start=1) }}"
    assert template(source).render(HELLO) == "6 6"


def test_output_is_bounded() -> None:
    long = Message(role="user", content="y" * 100_000)
    repeats = MAX_OUTPUT_CHARS // 100_000 + 1
    source = f"{{% for i in range({repeats}) %}}{{{{ messages[0].content }}}}{{% endfor %}}"
    with pytest.raises(SequenceFailed, match="characters"):
        template(source).render((long,))
