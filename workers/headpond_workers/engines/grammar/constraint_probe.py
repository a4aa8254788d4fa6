"""The child process of `constraint_check`: makes rules of a constraint, within limits that the kernel keeps.

stdin:   {"kind", "text", "without": [[LOW, HIGH] ...], "cpu_s", "memory_bytes"}
stdout:  {"rules": [[[ELEMENT ...] ...] ...]}   rule, alternative, element: the number of a rule, or [LOW, HIGH] pairs
         {"refused": "REASON"}
"""

from __future__ import annotations

import json
import resource
import sys
from typing import NoReturn


def main() -> None:
    task = json.load(sys.stdin.buffer)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (task["cpu_s"], task["cpu_s"] + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_AS, (task["memory_bytes"], task["memory_bytes"]))
    try:
        reply = _probe(task["kind"], task["text"], task["without"])
    except MemoryError:
        reply = {"refused": f"it takes more than {task['memory_bytes'] >> 20} MiB of memory"}
    except RecursionError:
        reply = {"refused": "it is nested too deep"}
    json.dump(reply, sys.stdout)


def _probe(kind: str, text: str, without: list[list[int]]) -> dict[str, object]:
    # Only now: what these modules take counts against the limits as well.
    from headpond_workers.engines.grammar.gbnf import GrammarError
    from headpond_workers.engines.grammar.gbnf_ambiguity import refuse_explosive
    from headpond_workers.engines.grammar.gbnf_parser import parse
    from headpond_workers.engines.grammar.gbnf_writable import restricted
    from headpond_workers.engines.grammar.schema_check import checked_schema
    from headpond_workers.engines.grammar.schema_grammar import ANY_OBJECT

    unwritable = tuple((low, high) for low, high in without)
    try:
        if kind == "json_schema":
            grammar = checked_schema(json.loads(text, parse_constant=_no_number), without=unwritable)
        else:
            grammar = restricted(parse(ANY_OBJECT if kind == "json_object" else text), unwritable)
            refuse_explosive(grammar)
    except GrammarError as error:
        return {"refused": str(error)}
    except json.JSONDecodeError as error:
        return {"refused": f"it is not JSON: {str(error)[:200]}"}
    except ValueError:
        return {"refused": "it holds a number of more digits than can be read"}
    return {"rules": grammar.rules}


def _no_number(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no number of JSON", name, 0)


if __name__ == "__main__":
    main()
