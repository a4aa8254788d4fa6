"""The tables [models.NAME] of headpond.toml, one class an engine. What an engine of another package needs, see
`headpond.engine_kinds`.
"""

from __future__ import annotations

from headpond.tables.adapter import AdapterTable, DraftTable
from headpond.tables.exllama import PAGE_TOKENS, ExLlamaV2Model, ExLlamaV3Model
from headpond.tables.kv import KvModel
from headpond.tables.llamacpp import LlamaCppModel
from headpond.tables.model import ModelTable
from headpond.tables.openai import OpenAIModel
from headpond.tables.retention import TenantRetention
from headpond.tables.scripted import ScriptedModel
from headpond.tables.secret_ref import NO_SECRETS, SecretRef, secret_references, secrets_of
from headpond.tables.table import Table
from headpond.tables.version_source import VersionSource
from headpond.tables.versioned import VersionedModel

__all__ = [
    "ENGINES",
    "NO_SECRETS",
    "PAGE_TOKENS",
    "AdapterTable",
    "DraftTable",
    "ExLlamaV2Model",
    "ExLlamaV3Model",
    "KvModel",
    "LlamaCppModel",
    "ModelTable",
    "OpenAIModel",
    "ScriptedModel",
    "SecretRef",
    "Table",
    "TenantRetention",
    "VersionSource",
    "VersionedModel",
    "secret_references",
    "secrets_of",
]

ENGINES: dict[str, type[ModelTable]] = {
    "scripted": ScriptedModel,
    "llamacpp": LlamaCppModel,
    "exllamav2": ExLlamaV2Model,
    "exllamav3": ExLlamaV3Model,
    "openai": OpenAIModel,
}
"""The engines of this package."""
