"""The sampler settings of exllamav2 jobs, on the real sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pytest

from exllamav2_cpu.availability import require_exllamav2
from headpond.errors import CapabilityMissing, SequenceFailed
from headpond.sampling import BASIC, Sampling
from headpond.tables import ExLlamaV2Model
from headpond_workers.engines.protocol import Sequence, Verdict

require_exllamav2()

from exllamav2_cpu import checkpoints, harness  # noqa: E402

harness.install()

import torch  # noqa: E402
from exllamav2 import ExLlamaV2Config, ExLlamaV2Tokenizer  # noqa: E402
from exllamav2.generator import ExLlamaV2Sampler  # noqa: E402

from exllamav2_cpu.tiny_corpus import STORY  # noqa: E402
from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine  # noqa: E402
from headpond_workers.engines.exllamav2.sampling import (  # noqa: E402
    DRY_MAX_TOKENS,
    SAMPLING,
    SettingsOfModel,
    fields_of,
    settings_of,
)

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

    # Mirostat is off, so that its tau says nothing.
    assert differing - {"mirostat_tau"} == {"token_repetition_penalty", "temperature", "top_k", "top_p"}
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


@pytest.mark.parametrize("temperature", [0, 1e-30, 1e-6, 0.005, 0.01])
@pytest.mark.parametrize("top_p", [1e-30, 0.5, 1.0])
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


@pytest.mark.parametrize("top_p", [1e-30, 1e-6])
def test_a_top_p_of_next_to_nothing_is_the_likeliest_token_and_not_off(
    scores: Any, tokenizer: Any, top_p: float
) -> None:
    sampling = Sampling(temperature=1.0, top_p=top_p)

    assert set(chosen(scores, tokenizer, sampling, points=[0.0, 0.5, 0.9999])) == {int(scores.argmax())}
    # The compiled sampler takes single precision, and 0 for off.
    assert torch.tensor(settings_of(sampling).top_p, dtype=torch.float32) > 0


# Settings beyond the basic ones


LETTERS = [chr(97 + n % 26).encode() if n < 300 else b"" for n in range(VOCABULARY)]
LETTERS[10] = b" \n"


@pytest.fixture
def model() -> SettingsOfModel:
    return SettingsOfModel(LETTERS, vocab_size=VOCABULARY)


def drawn(
    scores: Any,
    tokenizer: Any,
    model: SettingsOfModel,
    *,
    past: Seq[int] = (0,),
    points: Seq[float] = SCATTERED,
    **options: Any,
) -> list[int]:
    """What the real sampler takes at each random number, each time with new settings."""
    sampling = Sampling(**options)
    model.check(sampling)
    return [
        ExLlamaV2Sampler.sample(
            scores.clone().view(1, 1, VOCABULARY), model.new(sampling), torch.tensor([list(past)]), point, tokenizer
        )[0].item()
        for point in points
    ]


def test_all_settings_are_there_or_refused() -> None:
    assert Sampling.model_fields.keys() - BASIC - SAMPLING == {"xtc_probability", "xtc_threshold", "top_n_sigma"}
    assert set(Sampling.model_fields) >= SAMPLING


@pytest.mark.parametrize("top_k", [1, 2, 7])
def test_top_k_draws_from_so_many_tokens(scores: Any, tokenizer: Any, model: SettingsOfModel, top_k: int) -> None:
    likeliest = scores.argsort(descending=True)[:top_k].tolist()
    assert set(drawn(scores, tokenizer, model, top_k=top_k)) == set(likeliest)


@pytest.mark.parametrize("min_p", [0.05, 0.3, 0.9])
def test_min_p_draws_from_tokens_that_are_likely_beside_the_likeliest(
    scores: Any, tokenizer: Any, model: SettingsOfModel, min_p: float
) -> None:
    likelihood = torch.softmax(scores, -1)
    enough = set(torch.nonzero(likelihood >= min_p * likelihood.max()).flatten().tolist())
    points = [n / 3000 for n in range(3000)]
    found = set(drawn(scores, tokenizer, model, min_p=min_p, points=points))
    # The compiled sampler may keep one more, where its last swap runs over the edge.
    assert len(found - enough) <= 1
    assert enough <= found


def test_typical_p_leaves_out_what_is_unlikely_and_keeps_so_much(
    scores: Any, tokenizer: Any, model: SettingsOfModel
) -> None:
    kinds = [len(set(drawn(scores, tokenizer, model, typical_p=p))) for p in (0.1, 0.5, 1.0)]
    assert kinds == sorted(kinds)
    assert kinds[0] < kinds[2] / 2


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.5}], ids=str
)
def test_a_penalty_counts_what_was_said_within_its_range(
    scores: Any, tokenizer: Any, model: SettingsOfModel, penalty: dict[str, float]
) -> None:
    first, second = scores.argsort(descending=True)[:2].tolist()
    close = torch.full_like(scores, -5.0)
    close[first] = 2.0
    close[second] = 1.9
    greedy: dict[str, Any] = {"temperature": 0, "points": [0.5], **penalty}
    assert drawn(close, tokenizer, model, past=[5] * 9, **greedy) == [first]
    assert drawn(close, tokenizer, model, past=[first, *[5] * 9], **greedy) == [second]
    assert drawn(close, tokenizer, model, past=[first, *[5] * 9], penalty_last_tokens=4, **greedy) == [first]
    assert drawn(close, tokenizer, model, past=[first, *[5] * 9], penalty_last_tokens=10, **greedy) == [second]


def test_dry_penalises_what_would_go_on_with_a_repetition(scores: Any, tokenizer: Any, model: SettingsOfModel) -> None:
    first, second = scores.argsort(descending=True)[:2].tolist()
    close = scores.clone()
    close[second] = close[first] - 0.1
    said = [40, 41, 42, first, 43, 44, 45, 46, 40, 41, 42]
    greedy: dict[str, Any] = {"temperature": 0, "points": [0.5], "past": said, "dry_sequence_breakers": ("\n",)}
    assert drawn(close, tokenizer, model, **greedy) == [first]
    assert drawn(close, tokenizer, model, dry_multiplier=1.0, **greedy) == [second]
    assert drawn(close, tokenizer, model, dry_multiplier=1.0, dry_allowed_length=4, **greedy) == [first]
    broken = [40, 41, 10, first, 43, 44, 45, 46, 40, 41, 10]
    assert drawn(close, tokenizer, model, dry_multiplier=1.0, **(greedy | {"past": broken})) == [first]
    far = said[:4] + [50 + n for n in range(30)] + [40, 41, 42]
    assert drawn(close, tokenizer, model, dry_multiplier=1.0, **(greedy | {"past": far})) == [second]
    near: dict[str, Any] = {"dry_multiplier": 1.0, "dry_last_tokens": DRY_MAX_TOKENS + 1}
    assert drawn(close, tokenizer, model, **near, **(greedy | {"past": far})) == [first]


def test_mirostat_2_keeps_to_its_surprise_and_has_a_state_of_its_own(
    scores: Any, tokenizer: Any, model: SettingsOfModel
) -> None:
    calm = set(drawn(scores, tokenizer, model, mirostat=2, mirostat_tau=1.0))
    wild = set(drawn(scores, tokenizer, model, mirostat=2, mirostat_tau=4.0))
    assert len(calm) < len(wild)
    one, other = model.new(Sampling(mirostat=2)), model.new(Sampling(mirostat=2))
    assert one.mirostat
    ExLlamaV2Sampler.sample(scores.clone().view(1, 1, VOCABULARY), one, torch.tensor([[0]]), 0.5, tokenizer)
    assert one.mirostat_mu is not None
    assert other.mirostat_mu is None
    assert not model.new(Sampling(mirostat=2, temperature=0)).mirostat


def test_dynamic_temperature_lies_in_its_range_and_never_in_nothing(
    scores: Any, tokenizer: Any, model: SettingsOfModel
) -> None:
    settings = model.new(Sampling(temperature=1.0, temperature_range=0.75, temperature_exponent=2.0))
    assert (settings.temperature, settings.min_temp, settings.max_temp, settings.temp_exponent) == (1, 0.25, 1.75, 2)
    flat = torch.zeros(VOCABULARY)
    calm = len(set(drawn(scores, tokenizer, model, temperature=0.5)))
    assert len(set(drawn(scores, tokenizer, model, temperature=0.5, temperature_range=0.4))) > calm
    assert len(set(drawn(flat, tokenizer, model, temperature=0.2, temperature_range=0.2))) > 100
    assert model.new(Sampling(temperature=0.2, temperature_range=0.2)).min_temp == pytest.approx(0.15)
    small = model.new(Sampling(temperature=0.1, temperature_range=0.04))
    assert (small.temperature, small.min_temp, small.max_temp) == (0.1, 0, 0)
    likeliest = {int(scores.argmax())}
    assert set(drawn(scores, tokenizer, model, temperature=0, temperature_range=2.0)) == likeliest


def test_a_bias_is_added_to_the_logit_of_its_token(scores: Any, tokenizer: Any, model: SettingsOfModel) -> None:
    likeliest, rare = int(scores.argmax()), int(scores.argmin())
    # At the random number 0 itself the sampler takes its first candidate, however unlikely.
    assert set(drawn(scores, tokenizer, model, points=SCATTERED[1:], logit_bias={str(rare): 100.0})) == {rare}
    assert likeliest not in drawn(scores, tokenizer, model, logit_bias={str(likeliest): -100.0})
    assert model.new(Sampling(logit_bias={"1": 2.5})).token_bias.numel() % 32 == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"logit_bias": {str(VOCABULARY): 1.0}}, f"logit_bias names {VOCABULARY}"),
        ({"dry_multiplier": 1.0, "dry_allowed_length": DRY_MAX_TOKENS}, "DRY would never begin"),
        ({"dry_multiplier": 1.0, "dry_last_tokens": DRY_MAX_TOKENS}, "needs more than 20"),
        ({"dry_multiplier": 1.0, "dry_sequence_breakers": ("###",)}, "No token of this model holds '###'"),
    ],
    ids=str,
)
def test_what_the_sampler_would_not_do_as_it_is_meant_is_refused(
    model: SettingsOfModel, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(SequenceFailed, match=told):
        model.check(Sampling(**options))


# In the engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExLlamaV2Engine]:
    folder: Path = tmp_path_factory.mktemp("digests")
    table = ExLlamaV2Model(engine="exllamav2", path=checkpoints.tiny(), context_tokens=1024, slots=4, chunk_tokens=256)
    engine = ExLlamaV2Engine(table, digest_cache=folder)
    yield engine
    engine.close()


def answer(engine: ExLlamaV2Engine, sampling: Sampling, *, generated: Seq[int] = (), seed: int = 3) -> list[int]:
    prompt = tuple(engine.encode(STORY * 2)[10:120])
    ids: list[int] = []

    def emit(new: Seq[int]) -> Verdict:
        ids.extend(new)
        return Verdict.GO

    engine.generate(Sequence(prompt, tuple(generated), 40 - len(generated), sampling, seed), emit)
    return ids


REPLAYED: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 20},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.8},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    "penalties of the last": {"repetition_penalty": 1.3, "frequency_penalty": 0.3, "penalty_last_tokens": 30},
    "dry": {"dry_multiplier": 0.8, "dry_base": 1.5},
    "dry of the last": {
        "dry_multiplier": 4.0,
        "dry_last_tokens": 50,
        "dry_allowed_length": 1,
        "dry_sequence_breakers": ("\n",),
    },
    "dynamic temperature": {"temperature_range": 1.0, "temperature_exponent": 0.7},
    "bias": {"logit_bias": {"40": 3.0, "50": -100.0}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLAYED)
def test_a_resumed_answer_goes_on_the_same_under(engine: ExLlamaV2Engine, name: str) -> None:
    sampling = Sampling(temperature=2.5, **REPLAYED[name])
    # Which draws hit the end token hangs on the last bits of the weights.
    for seed in range(30):
        whole = answer(engine, sampling, seed=seed)
        if len(whole) > 15 and whole != answer(engine, Sampling(temperature=2.5), seed=seed):
            break
    else:
        pytest.fail("the setting changed nothing")
    for k in (1, 7, 14, len(whole) - 1):
        assert whole[:k] + answer(engine, sampling, generated=whole[:k], seed=seed) == whole, f"resumed after {k}"


@pytest.mark.slow
def test_mirostat_begins_anew_in_a_resumed_answer(engine: ExLlamaV2Engine) -> None:
    sampling = Sampling(temperature=2.5, mirostat=2, mirostat_tau=2.0, mirostat_eta=0.9)
    others = 0
    for seed in range(8):
        whole = answer(engine, sampling, seed=seed)
        k = len(whole) // 2
        resumed = whole[:k] + answer(engine, sampling, generated=whole[:k], seed=seed)
        assert resumed[:k] == whole[:k]
        others += resumed != whole
    assert others, "a resumed answer was the same each time: then say so in docs/structured-output.md"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"xtc_probability": 0.5}, "cannot sample with xtc_probability"),
        ({"top_n_sigma": 1.0}, "cannot sample with top_n_sigma"),
        ({"mirostat": 1}, "cannot sample with mirostat 1"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_there_is_refused(engine: ExLlamaV2Engine, options: dict[str, Any], told: str) -> None:
    with pytest.raises(CapabilityMissing, match=told):
        answer(engine, Sampling(**options))
