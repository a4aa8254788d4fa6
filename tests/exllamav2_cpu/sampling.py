"""The sampler of the compiled module, after exllamav2_ext/cpp/sampling.cpp. Deterministic given `random`.

One step after the other works on the candidates: their probabilities (float32) and their ids, whose order decides
which of them a random number falls on. Sums are rounded elsewhere than in the C++, and of equally likely candidates at
the edge of top_k or top_p others may stay. XTC is missing, because the C++ compares a probability with an index there.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

MIN_TEMPERATURE = 0.01
SMALLEST_SORTED = 1e-8
SMALLEST_FOR_TOP_P = 1e-6
RANDOM_SCALE = 0.9998
"""Float32 probabilities may add up to a little less than 1."""


@dataclass(slots=True)
class Candidates:
    """The first `count` of p and ids. What lies behind is left over from before a cut, as in the C++."""

    p: Floats
    ids: Ids
    count: int

    @property
    def live(self) -> Floats:
        return self.p[: self.count]

    def keep(self, which: Any) -> None:
        """Keep those that a list of places or a mask picks, in its order."""
        p, ids = self.live[which], self.ids[: self.count][which]
        self.count = len(p)
        self.p[: self.count], self.ids[: self.count] = p, ids

    def cut(self, count: int) -> None:
        """Keep the first `count`, at least one."""
        self.count = max(1, count)

    def normalise(self) -> None:
        self.live[:] /= self.live.sum(dtype=np.float32)

    def sort_descending(self) -> int:
        """The likeliest first. Returns how many are likely enough to count."""
        self.keep(np.lexsort((-self.ids[: self.count], -self.live)))
        return max(1, int((self.live >= SMALLEST_SORTED).sum()))


def apply_rep_penalty(
    sequence: torch.Tensor,
    penalty: float,
    sustain: int,
    decay: int,
    frequency: float,
    presence: float,
    logits: torch.Tensor,
) -> None:
    """Penalise, in logits (batch, 1, vocabulary), the ids of sequence (batch, tokens), in place.

    The newest `sustain` tokens (-1: all) count in full, the `decay` tokens before them less and less.
    """
    for row, ids in enumerate(sequence.tolist()):
        scores = logits[row].view(-1)
        repetition_now, frequency_now, presence_now = penalty, frequency, presence
        in_full = len(ids) if sustain == -1 else sustain
        oldest = max(0, len(ids) - in_full - decay)
        seen: set[int] = set()
        for token in reversed(ids[oldest:]):
            if token < scores.numel():
                if token not in seen:
                    seen.add(token)
                    score = scores[token]
                    scores[token] = (score / repetition_now if score > 0 else score * repetition_now) - presence_now
                scores[token] -= frequency_now
            in_full -= 1
            if in_full < 0 and decay:
                repetition_now += (1.0 - penalty) / decay
                frequency_now -= frequency / decay
                presence_now -= presence / decay


def sample_basic(
    logits: torch.Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    top_a: float,
    min_p: float,
    tfs: float,
    typical: float,
    random: float,
    output_tokens: torch.Tensor,
    output_probs: torch.Tensor,
    output_kprobs: torch.Tensor,
    output_ktokens: torch.Tensor,
    logit_filter: torch.Tensor,
    mirostat: bool,
    mirostat_mu: list[float],
    mirostat_tau: float,
    mirostat_eta: float,
    post_temperature: float,
    xtc_mask: torch.Tensor,
    xtc_probability: float = 0.0,
    xtc_threshold: float = 0.1,
    min_temp: float = 0.0,
    max_temp: float = 0.0,
    temp_exponent: float = 1.0,
    smoothing_factor: float = 0.0,
    skew: float = 0.0,
) -> list[float]:
    """Choose one token for each row of logits (batch, 1, vocabulary). Returns the new mirostat_mu.

    Fills output_tokens and output_probs (batch, 1), and output_ktokens and output_kprobs (batch, 1, n) unless absent.
    logit_filter: (batch, vocabulary), True where allowed, or absent.
    """
    if xtc_probability > 0:
        raise NotImplementedError("sample_basic: XTC has no CPU stand-in")
    mu = list(mirostat_mu)
    if temperature < MIN_TEMPERATURE:
        temperature, top_k = 1.0, 1
    for row in range(logits.shape[0]):
        if smoothing_factor > 0:
            temperature /= smoothing_factor
        allowed = None if logit_filter.is_meta else logit_filter[row].numpy()
        candidates = softmax(logits[row].reshape(-1).numpy(), temperature, allowed, squared=smoothing_factor > 0)
        if 0 < top_k < candidates.count:
            keep_top_k(candidates, top_k)
        if candidates.count > 1 and 0 < top_p < 1:
            keep_top_p(candidates, top_p)
        if candidates.count > 1 and top_a > 0:
            keep_above(candidates, top_a * float(candidates.live.max()) ** 2)
        if candidates.count > 1 and 0 < min_p < 1:
            keep_above(candidates, min_p * float(candidates.live.max()))
        if candidates.count > 1 and 0 < tfs < 1:
            keep_tail_free(candidates, tfs)
        if candidates.count > 1 and 0 < typical < 1:
            keep_typical(candidates, typical)
        if candidates.count > 1 and mirostat:
            keep_unsurprising(candidates, mu[row] or 2 * mirostat_tau)
        if candidates.count > 1 and (post_temperature != 1 or max_temp > min_temp):
            retemper(candidates, post_temperature, min_temp, max_temp, temp_exponent)
        wanted = 0 if output_kprobs.is_meta else int(output_kprobs.shape[2])
        if wanted or skew:
            candidates.sort_descending()
        if wanted:
            _write_top(candidates, output_ktokens[row, 0], output_kprobs[row, 0])
        point = random ** math.exp(-skew) if skew else random
        chosen = draw(candidates, point * RANDOM_SCALE)
        output_tokens[row, 0] = int(candidates.ids[chosen])
        output_probs[row, 0] = float(candidates.p[chosen])
        if mirostat:
            surprise = -math.log2(float(candidates.p[chosen]))
            mu[row] = (mu[row] or 2 * mirostat_tau) + mirostat_eta * (mirostat_tau - surprise)
        if logits.shape[0] > 1:
            random = _next_random(random)
    return mu


def softmax(logits: npt.NDArray[Any], temperature: float, allowed: Any, *, squared: bool) -> Candidates:
    """All ids in their order; forbidden ones with probability 0. squared: the smoothed (quadratic) variant."""
    scores = logits.astype(np.float32)
    if allowed is not None:
        scores = np.where(allowed, scores, np.float32(-np.inf))
    scores = scores - scores.max()
    if squared:
        scores = -scores * scores
    weights = np.exp(scores / np.float32(temperature))
    return Candidates(
        (weights / weights.sum(dtype=np.float32)).astype(np.float32), np.arange(len(weights)), len(weights)
    )


def keep_top_k(candidates: Candidates, top_k: int) -> None:
    """The likeliest top_k, sorted; of equal ones the lowest id if top_k is 1."""
    if top_k == 1:
        candidates.keep([int(candidates.live.argmax())])
    else:
        candidates.keep(np.argpartition(-candidates.live, top_k - 1)[:top_k])
        candidates.sort_descending()
    candidates.normalise()


def keep_top_p(candidates: Candidates, top_p: float) -> None:
    """Likely ones whose sum stays within top_p, at least one, sorted.

    As in the C++ the list is walked once and the least likely is dropped whenever the sum is too large, so that a
    later, smaller one may still find room.
    """
    heap: list[tuple[float, int]] = []
    total = 0.0
    for at in np.flatnonzero(candidates.live >= SMALLEST_FOR_TOP_P).tolist():
        p = float(candidates.p[at])
        if total > top_p and p < heap[0][0]:
            continue
        heapq.heappush(heap, (p, at))
        total += p
        while total > top_p and len(heap) > 1:
            total -= heapq.heappop(heap)[0]
    candidates.keep([at for _, at in sorted(heap, reverse=True)])
    candidates.normalise()


def keep_above(candidates: Candidates, threshold: float) -> None:
    """Those at least as likely as the threshold, moved to the front as the C++ does it.

    As there, one more stays, the next in the list, where its last swap runs over the edge.
    """
    above = candidates.live >= np.float32(threshold)
    count, total = int(above.sum()), len(above)
    order = np.arange(total)
    holes = np.flatnonzero(~above[:count])
    fillers = count + np.flatnonzero(above[count:])[::-1]
    order[holes], order[fillers] = fillers, holes
    candidates.keep(order)
    if 0 < count < len(candidates.p) and above[count - 1] and (count == total or above[count]):
        for values in (candidates.p, candidates.ids):
            values[[count - 1, count]] = values[[count, count - 1]]
        count += 1
    candidates.cut(count)
    candidates.normalise()


def keep_tail_free(candidates: Candidates, tfs: float) -> None:
    """Tail-free sampling: cut the sorted list where its second derivative has used up `tfs`."""
    if candidates.count < 3:
        return
    p = candidates.p[: candidates.sort_descending()]
    bends = np.abs(-p[:-2] + 2 * p[1:-1] - p[2:])
    used = np.cumsum(bends) / bends.sum() if bends.sum() > 0 else np.zeros(0, np.float32)
    candidates.cut(int((used <= tfs).sum()) + 1)
    candidates.normalise()


def keep_typical(candidates: Candidates, typical: float) -> None:
    """Locally typical sampling: those of the most usual surprise, while they sum to less than `typical`."""
    candidates.keep(candidates.live >= SMALLEST_SORTED)
    p = candidates.live
    logs = p + np.log(p + np.float32(1e-10))
    deviation = np.abs(logs - (p * logs).sum(dtype=np.float32))
    candidates.keep(np.argsort(deviation, kind="stable"))
    candidates.cut(int((np.cumsum(candidates.live) < typical).sum()))
    candidates.normalise()


def keep_unsurprising(candidates: Candidates, mu: float) -> None:
    """Mirostat: those of a surprise (in bits) of at most mu; at least one."""
    p = candidates.p[: candidates.sort_descending()]
    candidates.cut(int((p >= np.float32(2.0**-mu)).sum()))
    candidates.normalise()


def retemper(candidates: Candidates, temperature: float, lowest: float, highest: float, exponent: float) -> None:
    """A temperature after the truncation, taken from the entropy if highest > lowest (dynamic temperature)."""
    if highest > lowest:
        likely = candidates.live[candidates.live > 0]
        entropy = float(-(likely * np.log(likely)).sum())
        temperature = lowest + (highest - lowest) * (entropy / math.log(candidates.count)) ** exponent
    with np.errstate(divide="ignore"):
        # In logarithms: a very low temperature would make every power 0.
        powers = np.log(candidates.live / candidates.live.max()) / np.float32(max(temperature, 1e-6))
    candidates.live[:] = np.exp(powers)
    candidates.normalise()


def draw(candidates: Candidates, point: float) -> int:
    """The first candidate at which the running sum reaches `point`, else the last that is possible at all."""
    sums = np.cumsum(candidates.live, dtype=np.float32)
    at = int(np.searchsorted(sums, np.float32(point), side="left"))
    return at if at < len(sums) else int(np.flatnonzero(candidates.live)[-1])


def _write_top(candidates: Candidates, tokens: torch.Tensor, probs: torch.Tensor) -> None:
    """The likeliest; where there are fewer than asked for, other ids with probability 0."""
    found = zip(candidates.ids[: candidates.count].tolist(), candidates.live.tolist(), strict=True)
    given = [(token, p) for token, p in itertools.islice(found, len(tokens)) if p > 0]
    taken = {token for token, _ in given}
    spare = (token for token in itertools.count() if token not in taken)
    given += [(token, 0.0) for token in itertools.islice(spare, len(tokens) - len(given))]
    for at, (token, p) in enumerate(given):
        tokens[at], probs[at] = token, p


def _next_random(random: float) -> float:
    value = random
    for _ in range(10):
        value += 1.337 + random
        value = math.fmod(value * value, 1.0)
    return value
