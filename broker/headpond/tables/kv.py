"""What models have whose engine can keep keys and values of prompts in files."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from headpond.tables.versioned import VersionedModel


class KvModel(VersionedModel):
    """A model that may go on from stored keys and values instead of reading a prompt again."""

    host_keys: ClassVar[frozenset[str]] = frozenset({"kv", "kv_max_gb", "kv_min_tokens"})

    kv: Literal["off", "local", "storage"] = "off"
    """Whether keys and values of ended jobs are kept for prompts that begin alike: on this machine, or in storage too,
    for other machines. See [operation.md](operation.md#stored-keys-and-values)."""
    kv_max_gb: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 10.0
    """Gigabytes (10^9 bytes) of them that this machine keeps."""
    kv_min_tokens: Annotated[int, Field(ge=64, le=1 << 24)] = 256
    """Prompt and answer of fewer tokens are not kept."""
