"""Chat templates: Jinja that comes with a model, so a program by a stranger. Run in a sandbox, with budgets.

Templates get what Hugging Face's tools give them (messages, bos_token, eos_token, add_generation_prompt,
raise_exception, tojson, loop controls), but for the clock: a prompt must be the same in every attempt of a
job. A template that asks whether `strftime_now` is defined has a fixed date to fall back on.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from headpond.errors import EngineUnavailable, SequenceFailed
from headpond.requests import Message

try:
    from jinja2 import TemplateError

    from headpond_workers.engines.templates.template_sandbox import Budget, TemplateSandbox, current_budget
except ImportError as error:
    raise EngineUnavailable(
        f"Chat templates need the package Jinja2 ({error}). Install it with the engine's extra, such as: "
        "pip install 'headpond[llama]'"
    ) from error

MAX_TEMPLATE_CHARS = 1 << 18
MAX_OUTPUT_CHARS = 1 << 23

_EXPRESSION_ERRORS = (
    TemplateError,
    RecursionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What any expression of a template can raise. None of it is a fault of this process."""


class ChatTemplate:
    """One compiled template. Thread-safe."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        """Raises EngineUnavailable if source is no template that can be used."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise EngineUnavailable(
                f"The model's chat template has {len(source)} characters; the limit is {MAX_TEMPLATE_CHARS}. "
                "Choose another model, or convert it with a template of your own."
            )
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        sandbox = TemplateSandbox()
        try:
            self._template = sandbox.from_string(sandbox.bounded(source))
        except (TemplateError, RecursionError, SyntaxError) as error:
            # SyntaxError: Python refuses what Jinja makes of loops nested too deep.
            raise EngineUnavailable(
                f"The model's chat template cannot be used: {_reason(error)}. "
                "Convert the model again with a template that Hugging Face's tools accept."
            ) from error

    def render(self, messages: Seq[Message]) -> str:
        """The text of a conversation, ready for the model's answer. The same input gives the same text.

        Raises SequenceFailed if the template refuses the conversation, or uses up its budget.
        """
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        before = current_budget.set(Budget())
        try:
            parts, size = [], 0
            for part in self._template.generate(messages=conversation, add_generation_prompt=True, **self._tokens):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT_CHARS:
                    raise TemplateError(f"it writes more than {MAX_OUTPUT_CHARS} characters")
            return "".join(parts)
        except _EXPRESSION_ERRORS as error:
            raise SequenceFailed(
                f"The model's chat template refuses this conversation: {_reason(error)}. "
                "Change the roles or the order of the messages."
            ) from error
        finally:
            current_budget.reset(before)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it recurses too deep"
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
