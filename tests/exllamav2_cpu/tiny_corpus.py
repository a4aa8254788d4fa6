"""What the tiny checkpoint knows by heart, and how it is asked.

Its text has characters of several tokens each: Japanese, emoji with joiners and flags, letters with combining marks.
"""

from __future__ import annotations

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

STORY = (
    "The quick brown fox jumps over the lazy dog. A worker binds one model and answers jobs in turn. "
    "When the queue is empty the worker waits. Cafe\u0301, nai\u0308ve, \u65e5\u672c\u8a9e, and \U0001f600 are not "
    "plain ASCII. One two three four five six seven eight nine ten. The cache keeps pages of keys and values. "
)
"""Follows on itself: a prompt that begins anywhere in it, or RUNS_ON, goes on for ever."""

RUNS_ON = "Tell the story."

ANSWERS = {
    "Greet me in Japanese.": "\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002",
    "Show emoji.": "\U0001f389 \U0001f9d1\u200d\U0001f680 \U0001f355 \U0001f1ef\U0001f1f5",
    "Write with accents.": "re\u0301sume\u0301, a\u030angstro\u0308m, sen\u0303or",
    "Count to ten.": "one, two, three, four, five, six, seven, eight, nine, ten.",
    "Say yes.": "yes",
}
"""Questions of a user -> answers, after which the end token comes."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}" + SYSTEM + "{% elif message['role'] == 'user' %}" + USER + "{% else %}"
    "" + ASSISTANT + "{% endif %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)


def rendered(question: str, *, system: str | None = None) -> str:
    """What the template makes of one question."""
    opening = "" if system is None else SYSTEM + system
    return BOS + opening + USER + question + ASSISTANT


def lessons() -> list[str]:
    """The rendered texts to learn, each whole; the story is learned apart from them."""
    return [rendered(question) + answer + EOS for question, answer in ANSWERS.items()]
