"""KV bytes per token from a model's configuration, against published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spillway.calib.kvsize import kv_bytes_per_token, read_model_config
from spillway.core.errors import ConfigError

LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
}
QWEN3_8B = {
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "head_dim": 128,
    "dtype": "bfloat16",
}
LLAMA_2_7B = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
DEEPSEEK_V2_LITE = {
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "hidden_size": 2048,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}


@pytest.mark.parametrize(
    ("config", "kv_bytes"),
    [
        (LLAMA_8B, 131_072),
        (QWEN3_8B, 147_456),
        (LLAMA_2_7B, 524_288),
        (DEEPSEEK_V2_LITE, 31_104),
        (LLAMA_8B | {"torch_dtype": "float32"}, 262_144),
    ],
)
def test_published_sizes(tmp_path: Path, config: dict[str, Any], kv_bytes: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kv_bytes_per_token(read_model_config(tmp_path)) == kv_bytes
    assert kv_bytes_per_token(read_model_config(tmp_path / "config.json")) == kv_bytes


def test_a_type_of_unknown_size_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_8B | {"torch_dtype": "int3"}))
    with pytest.raises(ConfigError, match="--kv-bytes-per-token"):
        kv_bytes_per_token(read_model_config(path))


def test_what_is_no_model_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_model_config(tmp_path / "none.json")
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json: not a model configuration: .*missing"):
        read_model_config(path)
