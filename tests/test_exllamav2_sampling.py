"""The sampler settings of exllamav2 jobs, on the real sampler."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from exllamav2_cpu.availability import require_exllamav2
from headpond.sampling import Sampling

require_exllamav2()

from exllamav2_cpu import checkpoints, harness  # noqa: E402

harness.install()

import torch  # noqa: E402
from exllamav2 import ExLlamaV2Config, ExLlamaV2Tokenizer  # noqa: E402
from exllamav2.generator import ExLlamaV2Sampler  # noqa: E402

from headpond_workers.engines.exllamav2_sampling import fields_of, settings_of  # noqa: E402

VOCABULARY = 320
SCATTERED = [n / 300 for n in range(300)]
"""Random numbers that between them meet most candidates of some weight."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return ExLlamaV2Tokenizer(ExLlamaV2Config(str(checkpoints.tiny())))


@pytest.fixture(scope="module")
def scores() -> Any:
    """Logits, shape (VOCABULARY,), whose softmax at temperature 1 is neither flat nor decided."""
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 1.5


def chosen(
    scores: Any, tokenizer: Any, sampling: Sampling, *, points: list[float] = SCATTERED, past: list[int] | None = None
) -> list[int]:
    """What the real sampler takes at each random number, after the tokens `past`."""
    sequence = torch.tensor([past or [0]])
    return [
        ExLlamaV2Sampler.sample(
            scores.clone().view(1, 1, VOCABULARY), settings_of(sampling), sequence, point, tokenizer
        )[0].item()
        for point in points
    ]


def test_every_field_of_the_real_settings_is_set() -> None:
    assert set(fields_of(Sampling())) == {field.name for field in dataclasses.fields(ExLlamaV2Sampler.Settings)}


def test_no_default_of_exllamav2_that_alters_an_answer_is_left() -> None:
    house_style = dataclasses.asdict(ExLlamaV2Sampler.Settings())
    ours = dataclasses.asdict(settings_of(Sampling()))

    differing = {name for name in ours if ours[name] != house_style[name]}

    assert differing == {"token_repetition_penalty", "temperature", "top_k", "top_p"}
    assert [ours[name] for name in ("token_repetition_penalty", "temperature", "top_k", "top_p")] == [1.0, 1.0, 0, 1.0]


def test_two_jobs_share_nothing_that_a_sampler_writes_to() -> None:
    one, other = settings_of(Sampling()), settings_of(Sampling())

    assert one is not other
    assert one.ngram_history is not other.ngram_history
    assert one.post_sampling_hooks is not other.post_sampling_hooks


def test_the_whole_vocabulary_can_be_drawn(scores: Any, tokenizer: Any) -> None:
    likelihood = torch.softmax(scores, -1)
    rare = int(likelihood.argsort(descending=True)[100])
    # The sampler takes candidates in the order of their ids, and scales the random number.
    point = float(likelihood[:rare].sum() + likelihood[rare] / 2) / 0.9998

    assert chosen(scores, tokenizer, Sampling(temperature=1.0), points=[point]) == [rare]


def test_a_token_that_was_said_before_is_as_likely_as_ever(scores: Any, tokenizer: Any) -> None:
    first, second = scores.argsort(descending=True)[:2].tolist()
    close = scores.clone()
    close[second] = close[first] * 0.99

    assert chosen(close, tokenizer, Sampling(temperature=0), points=[0.5], past=[first] * 40) == [first]
    assert ExLlamaV2Sampler.sample(
        close.clone().view(1, 1, VOCABULARY),
        ExLlamaV2Sampler.Settings.greedy(token_repetition_penalty=1.025),
        torch.tensor([[first] * 40]),
        0.5,
        tokenizer,
    )[0].item() == second  # fmt: skip


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-6, 0.005, 0.01])
@pytest.mark.parametrize("top_p", [1e-300, 0.5, 1.0])
def test_a_temperature_of_next_to_nothing_is_greedy(
    scores: Any, tokenizer: Any, temperature: float, top_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p)

    assert set(chosen(scores, tokenizer, sampling, points=[0.0, 0.3, 0.9999])) == {int(scores.argmax())}


def test_a_higher_temperature_draws_from_more_tokens(scores: Any, tokenizer: Any) -> None:
    kinds = [len(set(chosen(scores, tokenizer, Sampling(temperature=t)))) for t in (0.05, 0.5, 1.5, 100.0)]

    assert kinds == sorted(kinds)
    assert kinds[0] < 5
    assert kinds[-1] > 200


@pytest.mark.parametrize("top_p", [0.2, 0.6, 0.9])
def test_top_p_draws_from_likely_tokens_that_together_are_about_so_likely(
    scores: Any, tokenizer: Any, top_p: float
) -> None:
    likelihood = torch.softmax(scores, -1)

    drawn = set(chosen(scores, tokenizer, Sampling(temperature=1.0, top_p=top_p)))

    # The real sampler takes candidates as they come, and may leave out one for a less likely one behind it.
    assert float(likelihood[list(drawn)].sum()) <= top_p + float(likelihood.max())
    assert int(likelihood.argmax()) in drawn
    assert len(drawn) < len(set(chosen(scores, tokenizer, Sampling(temperature=1.0))))


@pytest.mark.parametrize("top_p", [1e-300, 1e-46, 1e-6])
def test_a_top_p_of_next_to_nothing_is_the_likeliest_token_and_not_off(
    scores: Any, tokenizer: Any, top_p: float
) -> None:
    sampling = Sampling(temperature=1.0, top_p=top_p)

    assert set(chosen(scores, tokenizer, sampling, points=[0.0, 0.5, 0.9999])) == {int(scores.argmax())}
    # The compiled sampler takes single precision, and 0 for off.
    assert torch.tensor(settings_of(sampling).top_p, dtype=torch.float32) > 0
