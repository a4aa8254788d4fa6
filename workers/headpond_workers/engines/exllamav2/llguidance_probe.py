"""The child process of `llguidance_check`: compiles one constraint, within limits that the kernel keeps.

stdin:   {"kind", "text", "cpu_s", "memory_bytes"}
stdout:  {"failed": "REASON"}     what is wrong with it; empty if nothing is

It is compiled for a vocabulary of bytes, and its first mask is made: of the vocabulary that comes later the cost is
bounded by llguidance's own limits.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence

_END = 256


class _Bytes:
    """A vocabulary of all bytes and an end token, as llguidance's TokenizerWrapper asks for one."""

    eos_token_id = _END
    bos_token_id = None
    tokens: Sequence[bytes] = (*(bytes([byte]) for byte in range(256)), b"")
    special_token_ids = (_END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def main() -> None:
    task = json.load(sys.stdin.buffer)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (task["cpu_s"], task["cpu_s"] + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_AS, (task["memory_bytes"], task["memory_bytes"]))
    try:
        problem = _problem(task["kind"], task["text"])
    except MemoryError:
        problem = f"it takes more than {task['memory_bytes'] >> 20} MiB of memory"
    json.dump({"failed": problem}, sys.stdout)


def _problem(kind: str, text: str) -> str:
    # Only now: what these modules take counts against the limits as well.
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    from headpond.constraints import Constraint, ConstraintKind
    from headpond_workers.engines.exllamav2.llguidance_grammar import grammar_of, in_words, limits

    try:
        grammar = grammar_of(Constraint(ConstraintKind(kind), text))
    except ValueError as error:
        return in_words(str(error)) or "it cannot be read"
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=_END, slices=[])
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        mask = matcher.compute_bitmask()
        if not matcher.is_error() and not any(mask):
            return "no text at all matches it"
    return in_words(matcher.get_error()) if matcher.is_error() else ""


if __name__ == "__main__":
    main()
