"""Text and token ids of a checkpoint folder in Hugging Face's layout, for the engines exllamav2 and exllamav3."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq
from pathlib import Path

from headpond.errors import EngineError
from headpond.requests import Message
from headpond_workers.engines.formats.hf_vocabulary import HfVocabulary, read_hf_vocabulary
from headpond_workers.engines.templates.chat_template import ChatTemplate
from headpond_workers.engines.templates.template_check import check_template


class CheckpointText:
    """The vocabulary and the chat template of one folder. Thread-safe.

    end_ids: the tokens that end an answer. template_sha256: hex; of an empty text if there is no template.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ModelFileError for broken files, EngineUnavailable for a tokenizer or template that cannot be used."""
        self._vocabulary = read_hf_vocabulary(folder)
        self._template = _template_of(self._vocabulary)
        self.end_ids = self._vocabulary.end_ids
        source = self._vocabulary.chat_template
        self.template_sha256 = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Ids from 0 that the model has an embedding for."""
        return self._vocabulary.vocab_size

    @property
    def vocabulary(self) -> Seq[bytes]:
        """The bytes of each token, shape (vocabulary,); empty for those that add no text."""
        return self._vocabulary.token_bytes

    def render(self, messages: Seq[Message]) -> list[int]:
        """Token ids of a conversation. A model without a template is shown the contents alone."""
        if self._template is None:
            return self._vocabulary.encode_rendered("\n\n".join(message.content for message in messages))
        return self._vocabulary.encode_rendered(self._template.render(messages))

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self._vocabulary.token_bytes):
            raise EngineError(f"{token_id} is no token of this model, which has {len(self._vocabulary.token_bytes)}.")
        return self._vocabulary.token_bytes[token_id]


def _template_of(vocabulary: HfVocabulary) -> ChatTemplate | None:
    """The chat template, after a child process has survived it."""
    source = vocabulary.chat_template
    if not source:
        return None
    tokens = {"bos_token": vocabulary.bos_token, "eos_token": vocabulary.eos_token}
    check_template(source, **tokens)
    return ChatTemplate(source, **tokens)
