"""The vocabulary of a checkpoint folder, with tokenizers that the `tokenizers` library made, and broken files."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exllamav2_cpu.availability import require_exllamav2
from headpond.errors import EngineUnavailable, ModelFileError, SequenceFailed
from headpond_workers.engines.formats.hf_tokenizer import MAX_TOKENIZER_BYTES, MAX_TOKENS
from headpond_workers.engines.formats.hf_vocabulary import HfVocabulary, read_hf_vocabulary

require_exllamav2()
tokenizers = importlib.import_module("tokenizers")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps.",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3001\u65e5\u672c\u8a9e\u306e\u5358\u8a9e\u3002",
    "caf\u00e9 na\u00efve \U0001f389\U0001f389 e\u0301e\u0301",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]
MODEL_TOKENS = 600
SPACE = "\u2581"

Document = dict[str, Any]


def byte_level() -> Any:
    return tokenizers.Tokenizer.from_str(trained("byte_level"))


def sentence_piece() -> Any:
    return tokenizers.Tokenizer.from_str(trained("sentence_piece"))


MAKERS = {"byte_level": byte_level, "sentence_piece": sentence_piece}


@functools.cache
def trained(style: str) -> str:
    """Once a style: two trainings may differ."""
    return str((train_byte_level if style == "byte_level" else train_sentence_piece)().to_str())


def train_byte_level() -> Any:
    """As of GPT-2, Llama 3 and Qwen."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def train_sentence_piece() -> Any:
    """As of Llama 2: U+2581 for a space, one before the text, bytes for what has no piece."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token=SPECIAL[0], fuse_unk=True))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend(SPACE), tokenizers.normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace(SPACE, " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=40,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    document = json.loads(tokenizer.to_str())
    # The trainer can put the byte pieces into the vocabulary as special tokens only; they are none.
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in SPECIAL]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def make_folder(folder: Path, tokenizer: Any, *, template: object = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "config.json", {"vocab_size": MODEL_TOKENS, "eos_token_id": tokenizer.token_to_id("</s>")})
    write(
        folder,
        "tokenizer_config.json",
        {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template},
    )
    return folder


@pytest.fixture(scope="module", params=sorted(MAKERS))
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(style: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp(style), MAKERS[style](), template="{{ messages }}")


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> HfVocabulary:
    return read_hf_vocabulary(folder)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A sound byte-level folder of one test's own, to break."""
    return make_folder(tmp_path / "model", byte_level())


def joined(vocabulary: HfVocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.token_bytes[token_id] for token_id in ids)


def edit(folder: Path, change: Callable[[Document], object], *, name: str = "tokenizer.json") -> None:
    document = json.loads((folder / name).read_text(encoding="utf-8"))
    change(document)
    write(folder, name, document)


WORDS = [
    *("fox", "The", " ", "  ", "\n", "\t", "\x00", "<s>", "</s>", "<|user|>", "\U0010ffff"),
    *("\u65e5\u672c\u8a9e", "\u6f22", "e\u0301", "a\u0308\u0323", "\u0930\u094d\u0930\u093f"),
    *("\U0001f389", "\U0001f9d1\u200d\U0001f680"),
]
TEXTS = st.one_of(
    # U+2581 is left out: a SentencePiece vocabulary cannot tell it from a space.
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE), max_size=40),
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
)


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_the_bytes_of_a_texts_tokens_are_the_text(vocabulary: HfVocabulary, style: str, text: str) -> None:
    before = b" " if style == "sentence_piece" and text else b""
    assert joined(vocabulary, vocabulary.encode(text)) == before + text.encode()


def test_special_tokens_in_plain_text_are_plain_text(vocabulary: HfVocabulary) -> None:
    ids = vocabulary.encode("<s>Hi</s><|user|>")
    special = {vocabulary._tokenizer.ids[text] for text in SPECIAL}
    assert not special & set(ids)
    assert joined(vocabulary, ids).lstrip() == b"<s>Hi</s><|user|>"


def test_special_tokens_in_a_rendered_conversation_are_what_they_are(vocabulary: HfVocabulary) -> None:
    ids = vocabulary.encode_rendered("<s><|user|>Hi</s>")
    number = vocabulary._tokenizer.ids
    assert ids[:2] == [number["<s>"], number["<|user|>"]]
    assert ids[-1] == number["</s>"]
    assert ids.count(number["<s>"]) == 1
    assert joined(vocabulary, ids).strip() == b"Hi"


def test_special_tokens_add_no_text_and_ids_without_a_token_neither(vocabulary: HfVocabulary) -> None:
    assert len(vocabulary.token_bytes) == vocabulary.vocab_size == MODEL_TOKENS
    assert all(vocabulary.token_bytes[vocabulary._tokenizer.ids[text]] == b"" for text in SPECIAL)
    assert vocabulary.token_bytes[-1] == b""


def test_every_byte_has_a_token(vocabulary: HfVocabulary) -> None:
    assert {bytes([byte]) for byte in range(256)} <= set(vocabulary.token_bytes)


def test_tokens_decode_as_by_the_library_itself(vocabulary: HfVocabulary) -> None:
    text = "The fox, caf\u00e9 \u65e5\u672c\u8a9e\u306e \U0001f680!"
    ids = vocabulary.encode(text)
    assert vocabulary._tokenizer.rendered.decode(ids) == text
    assert joined(vocabulary, ids).decode().removeprefix(" ") == text


def test_a_model_without_a_template_gets_the_token_that_its_tokenizer_puts_first(tmp_path: Path) -> None:
    bare = read_hf_vocabulary(make_folder(tmp_path / "bare", sentence_piece()))
    templated = read_hf_vocabulary(make_folder(tmp_path / "templated", sentence_piece(), template="{{ messages }}"))
    bos = bare._tokenizer.ids["<s>"]
    assert bare.encode_rendered("Hi") == [bos, *templated.encode_rendered("Hi")]
    assert bos not in bare.encode("Hi")
    assert bos not in templated.encode_rendered("Hi")


def test_an_end_token_that_the_tokenizer_would_add_does_not_end_a_prompt(broken: Path) -> None:
    tokenizer = byte_level()
    pair = [(text, tokenizer.token_to_id(text)) for text in ("<s>", "</s>")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B", special_tokens=pair
    )
    make_folder(broken, tokenizer)
    vocabulary = read_hf_vocabulary(broken)
    assert vocabulary.encode_rendered("Hi") == [pair[0][1], *vocabulary.encode("Hi")]


def test_a_tokenizers_own_truncation_and_padding_are_off(broken: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    vocabulary = read_hf_vocabulary(make_folder(broken, tokenizer))
    for encode in (vocabulary.encode, vocabulary.encode_rendered):
        assert joined(vocabulary, encode("0123456789")) == b"0123456789"


def test_added_tokens_that_are_not_special_are_text(tmp_path: Path) -> None:
    for style, expected in (("byte_level", b"\xe2\x96\x81 \xc3\xa9"), ("sentence_piece", b"  \xc3\xa9")):
        tokenizer = MAKERS[style]()
        tokenizer.add_tokens([tokenizers.AddedToken(f"{SPACE} \u00e9", normalized=False)])
        vocabulary = read_hf_vocabulary(make_folder(tmp_path / style, tokenizer))
        number = tokenizer.token_to_id(f"{SPACE} \u00e9")
        assert vocabulary.token_bytes[number] == expected
        assert number in vocabulary.encode(f"x{SPACE} \u00e9y")


def test_end_tokens_come_from_every_file_that_names_some(broken: Path) -> None:
    number = read_hf_vocabulary(broken)._tokenizer.ids
    write(broken, "config.json", {"vocab_size": MODEL_TOKENS, "eos_token_id": number["<unk>"]})
    write(broken, "generation_config.json", {"eos_token_id": [number["<|user|>"], number["<unk>"]]})
    assert read_hf_vocabulary(broken).end_ids == {number["<unk>"], number["<|user|>"], number["</s>"]}


def test_a_model_of_several_kinds_keeps_its_sizes_in_text_config(broken: Path) -> None:
    write(broken, "config.json", {"text_config": {"vocab_size": 700, "eos_token_id": 5}})
    vocabulary = read_hf_vocabulary(broken)
    assert vocabulary.vocab_size == 700
    assert 5 in vocabulary.end_ids


def test_without_a_tokenizer_config_the_special_tokens_come_from_the_ids_in_config(broken: Path) -> None:
    number = read_hf_vocabulary(broken)._tokenizer.ids
    (broken / "tokenizer_config.json").unlink()
    write(broken, "config.json", {"eos_token_id": number["</s>"], "bos_token_id": number["<s>"]})
    vocabulary = read_hf_vocabulary(broken)
    assert (vocabulary.bos_token, vocabulary.eos_token, vocabulary.chat_template) == ("<s>", "</s>", "")
    assert vocabulary.vocab_size == len(vocabulary.token_bytes)


def test_a_model_without_an_end_token_is_refused(broken: Path) -> None:
    write(broken, "config.json", {"vocab_size": MODEL_TOKENS})
    write(broken, "tokenizer_config.json", {})
    with pytest.raises(ModelFileError, match="no token that ends an answer"):
        read_hf_vocabulary(broken)


def test_the_template_of_several_is_the_one_named_default(broken: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit(broken, lambda config: config.update(chat_template=named), name="tokenizer_config.json")
    assert read_hf_vocabulary(broken).chat_template == "plain"
    edit(broken, lambda config: config.update(chat_template=named[:1]), name="tokenizer_config.json")
    with pytest.raises(ModelFileError, match=r"'default' \(there are: tool_use"):
        read_hf_vocabulary(broken)


def test_a_template_in_a_file_of_its_own_goes_first(broken: Path) -> None:
    edit(broken, lambda config: config.update(chat_template="old"), name="tokenizer_config.json")
    (broken / "chat_template.jinja").write_text("new \u65e5", encoding="utf-8")
    assert read_hf_vocabulary(broken).chat_template == "new \u65e5"
    (broken / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja is not UTF-8"):
        read_hf_vocabulary(broken)


def test_a_token_that_the_model_has_no_embedding_for_fails_that_text_alone(broken: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<added>"])
    make_folder(broken, tokenizer)
    number = tokenizer.token_to_id("<added>")
    edit(broken, lambda config: config.update(vocab_size=number), name="config.json")
    vocabulary = read_hf_vocabulary(broken)
    with pytest.raises(SequenceFailed, match=f"token {number}, and the model knows {number}"):
        vocabulary.encode_rendered("Hi <added>")
    assert joined(vocabulary, vocabulary.encode("Hi <added>")) == b"Hi <added>"


def test_many_threads_may_encode_together(vocabulary: HfVocabulary) -> None:
    texts = [f"text {index} <s> \u65e5\u672c\u8a9e {'x' * index}" for index in range(64)]
    expected = [(vocabulary.encode(text), vocabulary.encode_rendered(text)) for text in texts]
    start = threading.Barrier(8)

    def work(_: int) -> list[tuple[list[int], list[int]]]:
        start.wait(30)
        return [(vocabulary.encode(text), vocabulary.encode_rendered(text)) for text in texts]

    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(work, range(8)))


def test_importing_the_module_does_not_import_tokenizers() -> None:
    program = "import sys, headpond_workers.engines.formats.hf_vocabulary; print('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"


def test_without_the_package_the_error_says_how_to_install_it(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'headpond\[exllamav2\]'"):
        read_hf_vocabulary(broken)


def set_model(**values: object) -> Callable[[Document], object]:
    return lambda document: document["model"].update(values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(model={"type": "WordPiece", "vocab": {}}), "model 'WordPiece'"),
        (lambda d: d.update(model={"type": "Unigram", "vocab": []}), "model 'Unigram'"),
        (lambda d: d.update(decoder=None), "decoder 'none'"),
        (lambda d: d.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "decoder 'WordPiece'"),
        (lambda d: d.update(decoder={"type": "BPEDecoder", "suffix": "</w>"}), "decoder 'BPEDecoder'"),
        (
            lambda d: d.update(decoder={"type": "Replace", "pattern": {"String": "x"}, "content": "y"}),
            r"decoder 'Replace\?'",
        ),
        (set_model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (set_model(dropout=0.5), "dropout"),
    ],
)
def test_a_kind_of_tokenizer_that_is_not_known_is_refused_by_its_name(
    broken: Path, change: Callable[[Document], object], reason: str
) -> None:
    edit(broken, change)
    with pytest.raises(EngineUnavailable, match=reason):
        read_hf_vocabulary(broken)


HOSTILE_TOKENIZERS: dict[str, Callable[[Document], object]] = {
    "no model": lambda d: d.pop("model"),
    "a model that is a list": lambda d: d.update(model=[]),
    "a vocabulary that is a list": set_model(vocab=["a"]),
    "an empty vocabulary": set_model(vocab={}, merges=[]),
    "a negative id": lambda d: d["model"]["vocab"].update(zz=-1),
    "an id of two thousand million": lambda d: d["model"]["vocab"].update(zz=2_000_000_000),
    "an id that is true": lambda d: d["model"]["vocab"].update(zz=True),
    "an id that is a text": lambda d: d["model"]["vocab"].update(zz="1"),
    "an id that is a fraction": lambda d: d["model"]["vocab"].update(zz=1.5),
    "two pieces of one id": lambda d: d["model"]["vocab"].update(zz=7),
    "a merge of unknown pieces": set_model(merges=[["q\u0120q", "zz"]]),
    "added tokens that are a number": lambda d: d.update(added_tokens=7),
    "an added token that is a text": lambda d: d.update(added_tokens=["<s>"]),
    "an added token with a huge id": lambda d: d["added_tokens"][0].update(id=MAX_TOKENS),
    "an added token with another id": lambda d: d["added_tokens"][0].update(id=500),
    "two added tokens of one id": lambda d: d["added_tokens"][0].update(id=1),
    "a special that is a number": lambda d: d["added_tokens"][0].update(special=1),
    "half a character": lambda d: d["model"]["vocab"].update({"\ud800": 599}),
    "a regular expression that is none": lambda d: d.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    ),
    "a table on which the library panics": lambda d: d.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "a post-processor on which the library panics": lambda d: d.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
}


@pytest.mark.parametrize("case", sorted(HOSTILE_TOKENIZERS))
def test_a_broken_tokenizer_is_refused_with_its_path(broken: Path, case: str) -> None:
    edit(broken, HOSTILE_TOKENIZERS[case])
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        read_hf_vocabulary(broken)


HOSTILE_CONFIGS: dict[str, tuple[str, object, str]] = {
    "an end id that is a text": ("config.json", {"eos_token_id": "2"}, "eos_token_id is '2'"),
    "an end id that is true": ("config.json", {"eos_token_id": True}, "eos_token_id is 'True'"),
    "a negative end id": ("generation_config.json", {"eos_token_id": [2, -1]}, "eos_token_id is '-1'"),
    "a nested end id": ("generation_config.json", {"eos_token_id": [[2]]}, r"eos_token_id is '\[2\]'"),
    "an end id beyond the model": ("generation_config.json", {"eos_token_id": 600}, "ends an answer with token 600"),
    "a huge vocabulary": ("config.json", {"vocab_size": 2_000_000_000}, "vocab_size is '2000000000'"),
    "an empty model": ("config.json", {"vocab_size": 0}, "vocab_size is '0'"),
    "an unknown end token": ("tokenizer_config.json", {"eos_token": "<nope>"}, "no token of tokenizer.json"),
    "a bos token that is a list": ("tokenizer_config.json", {"bos_token": ["<s>"]}, "bos_token is no text"),
    "a template that is a number": ("tokenizer_config.json", {"chat_template": 7}, "chat_template"),
    "a template with half a character": ("tokenizer_config.json", {"chat_template": "\ud800"}, "lone surrogate"),
    "an added token's huge id": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"2000000000": {"content": "x", "special": True}}},
        "2000000000",
    ),
    "an added token's id that is no number": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"x": {"content": "x", "special": True}}},
        "added_tokens_decoder is 'x'",
    ),
    "an added token without content": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"1": {"special": True}}},
        "entry 1 of added_tokens_decoder",
    ),
    "a huge id in the old file of added tokens": ("added_tokens.json", {"x": 2_000_000_000}, "2000000000"),
    "a list": ("config.json", [1], "holds a list"),
}


@pytest.mark.parametrize("case", sorted(HOSTILE_CONFIGS))
def test_a_broken_configuration_is_refused_with_its_path_and_fault(broken: Path, case: str) -> None:
    name, content, reason = HOSTILE_CONFIGS[case]
    write(broken, name, content)
    with pytest.raises(ModelFileError, match=reason) as failure:
        read_hf_vocabulary(broken)
    assert str(broken) in str(failure.value)


FILES = ["tokenizer.json", "config.json", "generation_config.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": ', b"\xff\xfe{}", b"[" * 200_000, b'{"a":' * 200_000, b"1" * 5000, b"nul"],
    ids=["empty", "brace", "cut", "utf-16", "nested lists", "nested objects", "long number", "no literal"],
)
def test_a_file_that_is_no_json_object_is_refused_with_its_path(broken: Path, name: str, content: bytes) -> None:
    (broken / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=name.replace(".", r"\.")):
        read_hf_vocabulary(broken)


@pytest.mark.parametrize("name", FILES)
def test_an_oversized_file_is_refused_before_it_is_read(broken: Path, name: str) -> None:
    with (broken / name).open("wb") as file:
        file.truncate(MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(ModelFileError, match=f"{MAX_TOKENIZER_BYTES + 1} bytes"):
        read_hf_vocabulary(broken)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_missing_file_is_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(ModelFileError, match=f"No file at .*{name}"):
        read_hf_vocabulary(broken)


def test_a_regular_expression_that_explodes_fails_the_text_and_not_the_process(broken: Path) -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    byte_level_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    edit(broken, lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [pattern, byte_level_step]}))
    vocabulary = read_hf_vocabulary(broken)
    with pytest.raises(SequenceFailed, match="cannot read this text"):
        vocabulary.encode("a" * 40 + "b")
    assert joined(vocabulary, vocabulary.encode("fine")) == b"fine"


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_tokenizer_is_read_or_refused_and_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = make_folder(tmp_path_factory.getbasetemp() / "damaged-tokenizer", byte_level())
    content = bytearray((folder / "tokenizer.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (folder / "tokenizer.json").write_bytes(content)
    try:
        tokens = len(read_hf_vocabulary(folder).token_bytes)
    except (ModelFileError, EngineUnavailable):
        tokens = MODEL_TOKENS
    assert MODEL_TOKENS <= tokens <= MAX_TOKENS
