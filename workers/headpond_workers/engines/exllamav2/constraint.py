"""Constraints on the text of an answer, as a filter of exllamav2's sampler: llguidance says which tokens may come next.

A constraint is compiled once for a model, in a child first; each sequence then has a copy of its own, which is fed
with the ids that it has already, so that a resumed sequence stands where it stood. The copy works on the bytes of
tokens: characters that span tokens need no care. The end token is allowed where the text may end, and nowhere else.

llguidance leaves Python's lock while it makes a mask, and exllamav2 samples three sequences and more in threads of
their own: a neighbour waits for the slowest mask of a step, not for all of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from importlib.util import find_spec
from typing import Any

from headpond.constraints import Constraint
from headpond.errors import EngineError, SequenceFailed
from headpond_workers.engines.exllamav2.llguidance_check import WORDS, check_constraint
from headpond_workers.engines.exllamav2.llguidance_grammar import grammar_of, in_words, limits
from headpond_workers.engines.protocol import Sequence, Verdict

KEPT = 64
"""Constraints that are kept compiled, and as many that are known to be wrong."""
_POLL_S = 0.05


def constraints_installed() -> bool:
    return find_spec("llguidance") is not None


class Constraints:
    """Those of one model. Thread-safe."""

    def __init__(self, vocabulary: Seq[bytes], *, end_ids: Collection[int], encode: Callable[[str], list[int]]) -> None:
        """vocabulary: the bytes of each token, empty for those that add no text. end_ids: what ends an answer. encode:
        the tokens of a plain text, as the model knows it."""
        from llguidance import LLTokenizer, TokenizerWrapper

        self._end_ids = frozenset(end_ids)
        self._tokens = len(vocabulary)
        wrapper = TokenizerWrapper(_Vocabulary(vocabulary, sorted(end_ids), encode))
        self._tokenizer = LLTokenizer(
            wrapper, n_vocab=len(vocabulary), eos_token=sorted(end_ids), slices=LLTokenizer.json_slices()
        )
        self._limits = limits()
        self._changed = threading.Condition()
        self._trying: set[Constraint] = set()
        self._compiled: OrderedDict[Constraint, Any] = OrderedDict()
        self._refused: OrderedDict[Constraint, str] = OrderedDict()

    def prepare(self, constraint: Constraint, proceed: Callable[[], Verdict]) -> bool:
        """Check and compile a constraint, if it is not known. False if `proceed`, asked meanwhile, said STOP.

        Raises SequenceFailed that says what is wrong with the constraint.
        """
        while True:
            with self._changed:
                if self._is_known(constraint):
                    return True
                if constraint not in self._trying:
                    self._trying.add(constraint)
                    break
                # Another job tries it already, and will know.
                self._changed.wait(_POLL_S)
            if proceed() is Verdict.STOP:
                return False
        try:
            if not check_constraint(constraint, proceed):
                return False
            self._compile(constraint)
        except SequenceFailed as error:
            with self._changed:
                _keep(self._refused, constraint, str(error))
            raise
        finally:
            with self._changed:
                self._trying.discard(constraint)
                self._changed.notify_all()
        return True

    def _is_known(self, constraint: Constraint) -> bool:
        """Raises SequenceFailed for a constraint that is known to be wrong."""
        if (refused := self._refused.get(constraint)) is not None:
            raise SequenceFailed(refused)
        if constraint not in self._compiled:
            return False
        self._compiled.move_to_end(constraint)
        return True

    def filter_for(self, sequence: Sequence) -> Any:
        """An ExLlamaV2Filter for a sequence whose constraint was prepared; it stands after `sequence.generated`.

        Raises SequenceFailed if these ids are none that the constraint admits.
        """
        constraint = sequence.constraint
        if constraint is None:
            raise EngineError("The sequence has no constraint.")
        with self._changed:
            compiled = self._compiled.get(constraint)
        if compiled is None:
            compiled = self._compile(constraint)
        matcher = compiled.deep_copy()
        if sequence.generated and not matcher.consume_tokens(list(sequence.generated)):
            raise SequenceFailed(
                f"The {len(sequence.generated)} tokens that this job has already do not match what it asks for "
                f"({in_words(matcher.get_error())}). They were made under another constraint or with another model. "
                "Submit the job anew."
            )
        return _filter_class()(matcher, self._end_ids, self._tokens, WORDS[constraint.kind])

    def _compile(self, constraint: Constraint) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar_of(constraint), log_level=0, limits=self._limits)
        if matcher.is_error():
            raise SequenceFailed(f"{WORDS[constraint.kind]} cannot be used: {in_words(matcher.get_error())}")
        with self._changed:
            _keep(self._compiled, constraint, matcher)
        return matcher


class _Vocabulary:
    """What llguidance's TokenizerWrapper asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: Seq[bytes], end_ids: list[int], encode: Callable[[str], list[int]]) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = end_ids[0]
        self.special_token_ids = [token_id for token_id, piece in enumerate(tokens) if not piece]
        self._encode = encode
        self._ids = {piece: token_id for token_id, piece in enumerate(tokens) if piece}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of a text that is forced. Where only one text can come next, its usual tokens alone are allowed."""
        try:
            ids = self._encode(text.decode("utf-8"))
        except (UnicodeDecodeError, SequenceFailed):
            return self._longest_first(text)
        # A tokenizer in the manner of SentencePiece begins with a space of its own.
        return ids if b"".join(self.tokens[token_id] for token_id in ids) == text else self._longest_first(text)

    def _longest_first(self, text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._ids), None)
            if end is None:
                break  # What is left is taken byte by byte, if there are tokens for it.
            ids.append(self._ids[text[at:end]])
            at = end
        return ids


def _keep(entries: OrderedDict[Constraint, Any], constraint: Constraint, value: Any) -> None:
    entries[constraint] = value
    entries.move_to_end(constraint)
    while len(entries) > KEPT:
        entries.popitem(last=False)


def _filter_class() -> type[Any]:
    global _FILTER
    if _FILTER is None:
        _FILTER = _new_filter_class()
    return _FILTER


_FILTER: type[Any] | None = None


def _new_filter_class() -> type[Any]:
    """A subclass of ExLlamaV2Filter. exllamav2 calls it from one thread at a time."""
    import numpy as np
    import torch
    from exllamav2.generator.filters import ExLlamaV2Filter

    class ConstraintFilter(ExLlamaV2Filter):  # type: ignore[misc]  # its base has no type
        def __init__(self, matcher: Any, end_ids: Collection[int], tokens: int, words: str) -> None:
            super().__init__(None, None)
            self.failure: SequenceFailed | None = None
            """Why the constraint could not be followed; the answer is then ended, and is none."""
            self._matcher = matcher
            self._end_ids = list(end_ids)
            self._tokens = tokens
            self._words = words
            self._forbidden: Any = None

        def begin(self, prefix_str: str) -> None:
            """The matcher stands after the ids that the sequence begins with."""

        def feed(self, token: Any) -> None:
            token_id = int(token)
            if token_id not in self._end_ids and self.failure is None and not self._matcher.consume_token(token_id):
                self._fail(self._matcher.get_error())

        def can_mask_logits(self) -> bool:
            # Not a list of what is allowed: inside a text that is most of the vocabulary.
            return True

        def prepare_logit_mask(self) -> bool:
            allowed = self._allowed()
            if allowed is None:
                # Not an error here: it would end the step of all others, whose pages would have to be made anew.
                allowed = np.zeros(self._tokens, np.uint8)
                allowed[self._end_ids] = 1
            self._forbidden = torch.from_numpy(allowed == 0)
            return True

        def mask_logits(self, logits: Any) -> Any:
            """In place. logits: shape (n,), with n at the vocabulary or, for its padding, beyond."""
            known = min(self._tokens, logits.shape[0])
            logits[:known].masked_fill_(self._forbidden[:known], -torch.inf)
            logits[known:] = -torch.inf
            return logits

        def _allowed(self) -> Any | None:
            """A flag a token; None once the constraint cannot be followed."""
            if self.failure is not None:
                return None
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if self._matcher.is_error():
                self._fail(self._matcher.get_error())
                return None
            allowed = np.unpackbits(bits, count=self._tokens, bitorder="little")
            if not allowed.any():
                self._fail("no token may come next")
                return None
            return allowed

        def _fail(self, reason: str) -> None:
            self.failure = SequenceFailed(
                f"{self._words} cannot be followed any further: {in_words(reason).rstrip('.')}. Make it simpler."
            )

    return ConstraintFilter


def failure_of(job: Any) -> SequenceFailed | None:
    """Why the constraint of an exllamav2 job could not be followed, if it could not."""
    return next((failure for each in job.filters if (failure := getattr(each, "failure", None))), None)
