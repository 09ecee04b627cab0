"""How many bytes of KV cache a token takes, from the model's own `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from spillway.core.errors import ConfigError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "half": 2, "float": 4}

Count = Annotated[int, msgspec.Meta(ge=1)]


class ModelConfig(msgspec.Struct):
    """The fields of a Hugging Face model configuration that decide the size of its KV cache."""

    num_hidden_layers: Count
    num_attention_heads: Count
    hidden_size: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    kv_lora_rank: Count | None = None
    qk_rope_head_dim: Count | None = None


def kv_bytes_per_token(config: ModelConfig, dtype: str | None = None) -> int:
    """Return the bytes of one token's KV over all layers and GPUs.

    Grouped-query attention keeps a key and a value per layer and KV head; latent attention (MLA)
    one compressed vector per layer. dtype: of the cache, when it is not the model's.
    Raises ConfigError on a type of unknown size.
    """
    name = dtype or config.torch_dtype or config.dtype or "bfloat16"
    if name not in DTYPE_BYTES:
        raise ConfigError(
            f"the size of a {name} is not known; give the bytes with --kv-bytes-per-token"
        )
    if config.kv_lora_rank is not None:
        numbers = config.kv_lora_rank + (config.qk_rope_head_dim or 0)
    else:
        head = config.head_dim or config.hidden_size // config.num_attention_heads
        numbers = 2 * (config.num_key_value_heads or config.num_attention_heads) * head
    return config.num_hidden_layers * numbers * DTYPE_BYTES[name]


def read_model_config(path: Path) -> ModelConfig:
    """Return the configuration in a file, or in the `config.json` of a folder.

    Raises ConfigError naming the file and what is missing in it.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=ModelConfig)
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot read the model configuration: {error.strerror}"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a model configuration: {error}") from None
