"""Makes a tiny Llama-shape model with random weights, and a tokenizer for any text.

The weights are scaled so that the output depends on the whole prompt: with vLLM's dummy weights all
logits are equal and two engines agree whatever KV they read. Every token id that the model can emit
is one visible piece of text of its own, so that equal text means equal tokens. Runs where torch,
safetensors and tokenizers are installed: in vLLM's environment.
"""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

# The load client's token ids are below it.
VOCABULARY = 17_408
POSITIONS_MAX = 8192
BEGIN, END, UNKNOWN = "<|begin|>", "<|end|>", "<|unknown|>"
SPECIAL = (BEGIN, END, UNKNOWN)
MADE = "made.json"  # written last: what the folder holds is whole
SEED = 20_260

# Gains over 1/sqrt(fan-in) with which attention looks at particular tokens and logits spread.
QK_GAIN, VO_GAIN, HEAD_GAIN = 2.5, 2.0, 3.0

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class Shape(NamedTuple):
    """The size of a model; heads are 64 wide."""

    hidden_width: int
    mlp_width: int
    layer_count: int
    head_count: int
    kv_head_count: int

    @property
    def kv_values_per_token_total(self) -> int:
        return 2 * self.layer_count * self.kv_head_count * 64


# name: parameters in millions, without embeddings. m4 is for tests; m10 has steps as slow, beside
# their fixed cost, as a large model has on a GPU: some 0.5 s for 2,048 prompt tokens on one core.
SHAPES = {
    "m4": Shape(256, 768, 4, 4, 2),
    "m10": Shape(384, 1024, 6, 6, 2),
    "m25": Shape(512, 1536, 8, 8, 2),
}


def make_model(folder: Path, shape_name: str) -> Path:
    """Return a folder with the named model, made there unless it is there already. About 1 s."""
    target = folder / shape_name
    wanted = json.dumps({"shape": SHAPES[shape_name], "vocabulary": VOCABULARY, "seed": SEED})
    made = target / MADE
    if made.exists() and made.read_text(encoding="utf-8") == wanted:
        return target
    target.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[shape_name]
    emitted = _write_tokenizer(target)
    _write_config(target, shape)
    _write_weights(target, shape, emitted)
    made.write_text(wanted, encoding="utf-8")
    return target


def _write_config(folder: Path, shape: Shape) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden_width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.layer_count,
        "num_attention_heads": shape.head_count,
        "num_key_value_heads": shape.kv_head_count,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS_MAX,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": SPECIAL.index(BEGIN),
        "eos_token_id": SPECIAL.index(END),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _write_tokenizer(folder: Path) -> list[int]:
    """Write a byte-level BPE whose merges are pairs of letters; return the ids to be emitted."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(product(ascii_lowercase, repeat=2))
    space = "Ġ"  # how a byte-level vocabulary writes it
    joined = ["".join(pair) for pair in pairs]
    merges = pairs + [(space, pair) for pair in joined]
    room = VOCABULARY - len(SPECIAL) - len(letters) - len(merges)
    # Spread over the alphabet: the pairs of pairs whose halves lie a fixed way apart.
    step = len(joined) // (room // len(joined) + 1)
    fours = (
        (pair, joined[(at + step * turn) % len(joined)])
        for turn in range(1, 26)
        for at, pair in enumerate(joined)
    )
    merges += list(islice(fours, room))
    words = [*SPECIAL, *letters, *(a + b for a, b in merges)]
    vocabulary = {word: index for index, word in enumerate(words)}
    assert len(vocabulary) == len(words) == VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": POSITIONS_MAX,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    visible = [word for word in letters if word.isascii()]
    return [vocabulary[word] for word in (*visible, *words[len(SPECIAL) + len(letters) :])]


def _write_weights(folder: Path, shape: Shape, emitted: list[int]) -> None:
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(SEED)
    hidden, mlp = shape.hidden_width, shape.mlp_width

    def matrix(out_width: int, in_width: int, gain: float = 1.0) -> Any:
        values = torch.randn(out_width, in_width, generator=random)
        return (values * (gain / in_width**0.5)).bfloat16()

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    head = matrix(VOCABULARY, hidden, HEAD_GAIN)
    # What is no visible text of its own, the end of the sequence included, gets the logit 0, which
    # never is the largest of thousands.
    silent = sorted(set(range(VOCABULARY)) - set(emitted))
    head[silent] = 0.0
    tensors = {
        "model.embed_tokens.weight": matrix(VOCABULARY, hidden, hidden**0.5),
        "model.norm.weight": ones.clone(),
        "lm_head.weight": head,
    }
    kv = shape.kv_head_count * 64
    for layer in range(shape.layer_count):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": ones.clone(),
            f"{at}.post_attention_layernorm.weight": ones.clone(),
            f"{at}.self_attn.q_proj.weight": matrix(hidden, hidden, QK_GAIN),
            f"{at}.self_attn.k_proj.weight": matrix(kv, hidden, QK_GAIN),
            f"{at}.self_attn.v_proj.weight": matrix(kv, hidden, VO_GAIN),
            f"{at}.self_attn.o_proj.weight": matrix(hidden, hidden, VO_GAIN),
            f"{at}.mlp.gate_proj.weight": matrix(mlp, hidden),
            f"{at}.mlp.up_proj.weight": matrix(mlp, hidden),
            f"{at}.mlp.down_proj.weight": matrix(hidden, mlp),
        }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
