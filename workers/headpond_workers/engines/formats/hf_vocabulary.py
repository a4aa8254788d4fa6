"""The vocabulary of a Hugging Face checkpoint folder: tokens, end tokens, special tokens, chat template.

tokenizer.json           the tokens, see `hf_tokenizer`
config.json              vocab_size, bos_token_id, eos_token_id (one or a list)
generation_config.json   eos_token_id, often more of them; may be absent
tokenizer_config.json    bos_token, eos_token, chat_template (a text, or a list of named ones); may be absent
chat_template.jinja      goes before the template in tokenizer_config.json
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from headpond.errors import ModelFileError, SequenceFailed
from headpond_workers.engines.formats.hf_tokenizer import MAX_TOKENS, HfTokenizer, encode, read_hf_tokenizer, token_id
from headpond_workers.engines.formats.model_files import read_bounded, read_json_object

MAX_CONFIG_BYTES = 1 << 24
MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HfVocabulary:
    """token_bytes: shape (vocabulary,), empty for tokens that add no text. end_ids: any of them ends an answer.

    vocab_size: tokens that the model has an embedding for; the tokenizer may have fewer, or more.
    bos_token, eos_token: their text, empty if the model has none. chat_template: Jinja source, or empty.
    """

    token_bytes: tuple[bytes, ...]
    vocab_size: int
    end_ids: frozenset[int]
    bos_token: str
    eos_token: str
    chat_template: str
    _tokenizer: HfTokenizer = field(repr=False)
    _first_ids: tuple[int, ...] = ()
    """What begins a prompt that no template has written."""

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: special tokens in it are plain text, and none is added.

        A tokenizer in the manner of SentencePiece may begin with a space that text does not have.
        Raises SequenceFailed for a text that this model cannot be given.
        """
        return self._known(encode(self._tokenizer.plain, text))

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered conversation: special tokens in it are what they are.

        Templates write the first token by themselves, so none is added, as by `apply_chat_template`. A model
        without a template gets the one that its tokenizer puts first.
        """
        return [*self._first_ids, *self._known(encode(self._tokenizer.rendered, text))]

    def _known(self, ids: list[int]) -> list[int]:
        if ids and (highest := max(ids)) >= self.vocab_size:
            raise SequenceFailed(
                f"The text holds token {highest}, and the model knows {self.vocab_size}: its tokenizer has tokens "
                "added that it was not trained with. Leave them out of the text."
            )
        return ids


def read_hf_vocabulary(folder: Path) -> HfVocabulary:
    """Read and check the files above.

    Raises ModelFileError for a broken or missing file, EngineUnavailable for a kind of tokenizer that is not known,
    or without the package `tokenizers`.
    """
    tokenizer = read_hf_tokenizer(folder / "tokenizer.json")
    config = _Config(folder / "config.json", required=True)
    generation = _Config(folder / "generation_config.json")
    texts = _Config(folder / "tokenizer_config.json")
    vocab_size = config.vocab_size() or len(tokenizer.token_bytes)
    missing = max(0, vocab_size - len(tokenizer.token_bytes))
    text_of = {number: text for text, number in tokenizer.ids.items()}
    end_ids = frozenset([*config.ids("eos_token_id"), *generation.ids("eos_token_id")])
    bos_token = texts.token("bos_token", tokenizer) or _first_text(config.ids("bos_token_id"), text_of)
    eos_token = texts.token("eos_token", tokenizer) or _first_text(config.ids("eos_token_id"), text_of)
    if eos_token:
        end_ids |= {tokenizer.ids[eos_token]}
    if not end_ids:
        raise ModelFileError(
            f"{folder} names no token that ends an answer. Add eos_token_id to its generation_config.json."
        )
    if max(end_ids) >= vocab_size:
        raise ModelFileError(
            f"{folder} ends an answer with token {max(end_ids)}, and the model has {vocab_size}. "
            "Correct eos_token_id in its config.json and generation_config.json."
        )
    texts.check_added_tokens()
    _Config(folder / "added_tokens.json").check_ids()
    template = _chat_template(folder, texts)
    return HfVocabulary(
        token_bytes=tokenizer.token_bytes + (b"",) * missing,
        vocab_size=vocab_size,
        end_ids=end_ids,
        bos_token=bos_token,
        eos_token=eos_token,
        chat_template=template,
        _tokenizer=tokenizer,
        _first_ids=() if template else _added_first(tokenizer, bos_token),
    )


class _Config:
    """One of the folder's JSON files. Every value is checked where it is taken; a file that may be absent is empty."""

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self._path = path
        present = required or os.path.lexists(path)
        self._values: dict[str, object] = read_json_object(path, max_bytes=MAX_CONFIG_BYTES) if present else {}

    def get(self, key: str) -> object:
        """The value at the top, or that of the text model in a model of several kinds."""
        value = self._values.get(key)
        inner = self._values.get("text_config")
        return inner.get(key) if value is None and isinstance(inner, dict) else value

    def vocab_size(self) -> int | None:
        size = self.get("vocab_size")
        if size is None:
            return None
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_TOKENS:
            raise self.bad(f"vocab_size is {str(size)[:50]!r}, not a number from 1 to {MAX_TOKENS}")
        return size

    def ids(self, key: str) -> list[int]:
        """One token id, or a list of them, or nothing."""
        value = self.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        return [token_id(item, key, self._path) for item in items]

    def token(self, key: str, tokenizer: HfTokenizer) -> str:
        """The text of a special token: written as it is, or as the content of an object. Empty if there is none."""
        value = self._values.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None or text == "":
            return ""
        if not isinstance(text, str):
            raise self.bad(f"{key} is no text")
        if text not in tokenizer.ids:
            raise self.bad(f"{key} is {text[:50]!r}, which is no token of tokenizer.json")
        return text

    def check_added_tokens(self) -> None:
        """exllamav2 reads these too, and makes tables as long as the highest id."""
        added = self._values.get("added_tokens_decoder", {})
        if not isinstance(added, dict):
            raise self.bad("added_tokens_decoder is no object")
        for key, token in added.items():
            token_id(
                int(key) if key.isdecimal() and len(key) < 20 else key, "an id in added_tokens_decoder", self._path
            )
            if not isinstance(token, dict) or not isinstance(token.get("content"), str) or "special" not in token:
                raise self.bad(f"the entry {key} of added_tokens_decoder is no token")

    def check_ids(self) -> None:
        """For a file of nothing but token texts and ids."""
        for text, number in self._values.items():
            token_id(number, f"the id of {text[:50]!r}", self._path)

    def templates(self) -> dict[str, str]:
        """Name -> source."""
        value = self._values.get("chat_template")
        if value is None:
            return {}
        if isinstance(value, str):
            return {"default": value}
        items = value if isinstance(value, list) else [value]
        found = {}
        for item in items:
            name, source = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(source, str):
                raise self.bad("chat_template is neither a text nor a list of named texts")
            found[name] = source
        return found

    def bad(self, reason: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is not valid: {reason}. Correct it, or fetch it again.")


def _chat_template(folder: Path, config: _Config) -> str:
    path = folder / "chat_template.jinja"
    if os.path.lexists(path):
        try:
            return read_bounded(path, max_bytes=MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{path} is not UTF-8: {error}. Fetch it again.") from error
    templates = config.templates()
    if templates and "default" not in templates:
        named = ", ".join(sorted(name[:50] for name in templates)[:10])
        raise config.bad(f"its chat_template has no entry named 'default' (there are: {named})")
    template = templates.get("default", "")
    try:
        template.encode("utf-8")
    except UnicodeEncodeError as error:
        raise config.bad("its chat_template holds half a character (a lone surrogate)") from error
    return template


def _first_text(ids: list[int], text_of: dict[int, str]) -> str:
    return text_of.get(ids[0], "") if ids else ""


def _added_first(tokenizer: HfTokenizer, bos_token: str) -> tuple[int, ...]:
    try:
        added = encode(tokenizer.rendered, "", add_special_tokens=True)
    except SequenceFailed as error:
        raise ModelFileError(
            "The model's tokenizer cannot even read an empty text. Fetch tokenizer.json again."
        ) from error
    # An end token that the tokenizer may also add has no place before an answer.
    return tuple(added[:1]) if bos_token and added and added[0] == tokenizer.ids[bos_token] else ()
