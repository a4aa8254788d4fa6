"""The child process of `template_check`: renders a few conversations, within limits that the kernel keeps.

stdin:   {"source", "bos_token", "eos_token", "cpu_s", "memory_bytes"}
stdout:  {"refused": {"ROLES": "REASON"}}            it renders a plain user message; what it refuses
         {"failed": "REASON"}                        it does not
         {"unusable": "MESSAGE"}                     it is no template; the message of that EngineUnavailable
"""

from __future__ import annotations

import json
import resource
import sys
from typing import TYPE_CHECKING, Literal

from headpond.errors import EngineUnavailable, SequenceFailed

if TYPE_CHECKING:
    from headpond_workers.engines.templates.chat_template import ChatTemplate

_Roles = tuple[Literal["system", "user", "assistant"], ...]

PLAIN: _Roles = ("user",)
CONVERSATIONS: tuple[_Roles, ...] = (PLAIN, ("system", "user"), ("user", "assistant", "user"))
_CONTENT = "Hello! \u4f60\u597d \U0001f44b"


def main() -> None:
    task = json.load(sys.stdin.buffer)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (task["cpu_s"], task["cpu_s"] + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_AS, (task["memory_bytes"], task["memory_bytes"]))
    try:
        reply = _probe(task["source"], bos_token=task["bos_token"], eos_token=task["eos_token"])
    except MemoryError:
        reply = {"failed": f"it takes more than {task['memory_bytes'] >> 20} MiB of memory"}
    json.dump(reply, sys.stdout)


def _probe(source: str, *, bos_token: str, eos_token: str) -> dict[str, object]:
    try:
        # Only now: what these modules take counts against the limits as well.
        from headpond_workers.engines.templates.chat_template import ChatTemplate

        template = ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)
    except EngineUnavailable as error:
        return {"unusable": str(error)}
    refused = {",".join(roles): _refusal(template, roles) for roles in CONVERSATIONS}
    if reason := refused[",".join(PLAIN)]:
        return {"failed": f"it does not render a plain user message: {reason}"}
    return {"refused": {roles: reason for roles, reason in refused.items() if reason}}


def _refusal(template: ChatTemplate, roles: _Roles) -> str:
    """Why the template does not render a conversation; empty if it does."""
    from headpond.requests import Message

    try:
        template.render([Message(role=role, content=_CONTENT) for role in roles])
    except SequenceFailed as error:
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    """What Jinja or Python said; headpond's own sentence around it is for other places."""
    return " ".join(str(error.__cause__ or error).split())[:300].rstrip(".")


if __name__ == "__main__":
    main()
