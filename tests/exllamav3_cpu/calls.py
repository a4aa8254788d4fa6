"""What is called of exllamav3, each call bound to the signature of the installed package.

Many of its functions take any keyword and drop those that they do not know. Here such a keyword is written down.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

WATCHED = {
    "Config": ("from_directory",),
    "Model": ("from_config", "unload"),
    "Cache": ("__init__",),
    "Tokenizer": ("from_config",),
    "Generator": ("__init__", "enqueue", "cancel", "iterate", "num_remaining_jobs", "close"),
    "Job": ("__init__",),
    "CustomSampler": ("__init__",),
    "SS_LogitBias": ("__init__",),
    "SS_MinP": ("__init__",),
    "SS_Temperature": ("__init__",),
    "SS_TopK": ("__init__",),
    "SS_TopP": ("__init__",),
}
LAYER_KEYWORDS = {"Cache.__init__": frozenset({"k_bits", "v_bits"})}
"""Passed on to the constructor of CacheLayer_quant, which takes no keyword that it does not know."""


class Calls:
    """named: for each function, every parameter that was given in any call. unknown: keywords that it would drop."""

    def __init__(self) -> None:
        self.named: dict[str, set[str]] = {}
        self.unknown: set[str] = set()

    def watch(self, exllamav3: Any) -> None:
        """From now on; the stand-in's pass tells by itself of what it replaces."""
        for owner, names in WATCHED.items():
            for name in names:
                self._watch(getattr(exllamav3, owner), name)

    def check(self, function: str, signature: inspect.Signature, *arguments: Any, **options: Any) -> None:
        """Raises TypeError if the call does not fit."""
        bound = signature.bind(*arguments, **options)
        given = self.named.setdefault(function, set())
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                dropped = set(value) - LAYER_KEYWORDS.get(function, frozenset())
                self.unknown |= {f"{function}({keyword})" for keyword in dropped}
                given |= set(value)
            else:
                given.add(name)

    def _watch(self, owner: type[Any], name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)
        signature = inspect.signature(original)
        function = f"{owner.__name__}.{name}"

        @functools.wraps(original)
        def watched(*arguments: Any, **options: Any) -> Any:
            self.check(function, signature, *arguments, **options)
            return original(*arguments, **options)

        static = isinstance(inspect.getattr_static(owner, name), staticmethod)
        setattr(owner, name, staticmethod(watched) if static else watched)
