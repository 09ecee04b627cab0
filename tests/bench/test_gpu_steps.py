"""The pure parts of the step-latency study: which steps, how large, and what they amount to.

The kernels themselves need PyTorch: `python -m gpu_steps --device cpu --small` runs them anywhere.
"""

import argparse
import json

import pytest

from spillway.calib.kvsize import ModelConfig, kv_bytes_per_token
from spillway.calib.samples import SampleFile, read_samples, write_samples
from spillway.core.latency import token_pairs


@pytest.fixture
def llama():
    from gpu_steps.shapes import SHAPES

    return SHAPES["llama-3.1-8b"]


@pytest.fixture
def deepseek():
    from gpu_steps.shapes import SHAPES

    return SHAPES["deepseek-v2-lite"]


def test_weights_are_those_of_the_models(llama, deepseek):
    # 8.03 billion with the embedding of 0.53; 15.7 billion with one of 0.21, 2.4 billion active.
    assert llama.weights() == pytest.approx(7.50e9, rel=0.01)
    assert llama.weights(active=True) == llama.weights()
    assert deepseek.weights() == pytest.approx(15.7e9, rel=0.03)
    assert deepseek.weights(active=True) == pytest.approx(2.4e9, rel=0.06)


def test_kv_bytes_are_those_that_a_models_configuration_gives(llama, deepseek):
    config = ModelConfig(
        num_hidden_layers=32, num_attention_heads=32, hidden_size=4096, num_key_value_heads=8
    )
    assert llama.kv_bytes_per_token == kv_bytes_per_token(config) == 131_072
    config = ModelConfig(
        num_hidden_layers=27,
        num_attention_heads=16,
        hidden_size=2048,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
    )
    assert deepseek.kv_bytes_per_token == kv_bytes_per_token(config) == 31_104


def test_flops_are_two_per_weight_and_token_plus_attention(llama, deepseek):
    assert llama.flops(1, 0, 0, 0.0) == 2 * llama.weights()
    body = 2 * (llama.weights() - llama.width * llama.vocabulary)
    head = 2 * llama.width * llama.vocabulary
    pairs = token_pairs(512, 1024)
    # Scores and values: 2 operations each per pair, head and value of a head.
    attention = 32 * 4 * 32 * 128 * (pairs + 5000)
    assert llama.flops(8, 5000, 512, pairs) == body * 520 + head * 9 + attention
    one = deepseek.flops(1, 0, 0, 0.0)
    assert one == 2 * deepseek.weights(active=True)
    assert deepseek.flops(1, 100, 0, 0.0) - one == 27 * 2 * 16 * (512 + 64 + 512) * 100


def test_even_routing_gives_every_token_its_experts(deepseek):
    for tokens in (1, 5, 10, 11, 100, 4096):
        touched, each = deepseek.expert_batch(tokens)
        assert touched <= 64
        assert touched * (each - 1) < tokens * 6 <= touched * each
    assert deepseek.expert_batch(1) == (6, 1)
    assert deepseek.expert_batch(64) == (64, 6)


def test_a_small_shape_keeps_the_architecture(llama, deepseek):
    from gpu_steps.shapes import small

    for shape in (llama, deepseek):
        tiny = small(shape)
        assert (tiny.experts is None) is (shape.experts is None)
        assert (tiny.latent is None) is (shape.latent is None)
        assert tiny.heads % tiny.kv_heads == 0
        assert tiny.weights() * tiny.value_bytes < 64e6


def test_the_sweep_has_every_chunk_beside_every_batch_once(llama):
    from gpu_steps.sweep import FULL, cells

    plan = cells(FULL, llama, 10**9)
    assert len(set(plan)) == len(plan)
    mixed = [one for one in plan if one.chunk_tokens]
    assert len(plan) - len(mixed) == 9 * 5
    assert len(mixed) == (1 + 3 * 2) * 6 * 3
    assert {one.chunk_tokens for one in mixed} == {128, 256, 512, 1024, 2048, 4096}
    assert all(one.context_tokens == 0 for one in mixed if not one.decode_seqs)
    assert all(one.pairs == token_pairs(one.chunk_tokens, one.chunk_context_tokens) for one in plan)


def test_steps_that_memory_or_context_do_not_hold_are_left_out(llama, deepseek):
    from gpu_steps.sweep import FULL, Sweep, cells, kv_room_tokens

    room_tokens = kv_room_tokens(llama, 80e9, llama.layers)
    assert 300_000 < room_tokens < 400_000  # 64 GB less 15 GB of weights, at 128 KiB a token
    assert kv_room_tokens(llama, 80e9, 4) > 8 * room_tokens
    assert kv_room_tokens(llama, 1e9, llama.layers) == 0
    plan = cells(FULL, llama, room_tokens)
    assert max(one.resident_tokens for one in plan) <= room_tokens
    assert len(plan) < len(cells(FULL, llama, 10**9))
    long = Sweep((1,), (40_000,), (0,), (1,), (4096,), (30_000,))
    assert cells(long, deepseek, 10**9) == []


def test_graphs_pad_a_batch_to_a_captured_size():
    from gpu_steps.__main__ import captured
    from gpu_steps.sweep import CAPTURED_SEQS, Cell, captured_seqs

    assert [captured_seqs(seqs) for seqs in (1, 3, 9, 256, 257, 600)] == [1, 4, 16, 256, 272, 600]
    assert list(CAPTURED_SEQS) == sorted(set(CAPTURED_SEQS))
    assert captured(Cell(3, 100), "on") == Cell(4, 100)
    assert captured(Cell(3, 100), "off") == Cell(3, 100)
    assert captured(Cell(3, 100, 64, 0), "on") == Cell(3, 100, 64, 0)


def test_samples_are_what_fit_reads(tmp_path, llama, capsys):
    from gpu_steps.__main__ import collect, head_of
    from gpu_steps.sweep import Cell

    plan = [Cell(4, 100), Cell(4, 100, 64, 128)]
    samples = collect(plan, lambda cell: [(0.001, 0.0), (0.002, 0.0015)])
    asked = argparse.Namespace(small=False, seed=7, graphs="on")
    head = head_of(asked, llama, 4, 1000, "a GPU", "2.13")
    path = tmp_path / "samples.jsonl"
    write_samples(path, SampleFile(head, samples))
    read = read_samples(path)
    assert read.head == head
    assert (head.source, head.how, head.kv_bytes_per_token) == ("kernels", "timed kernels", 131_072)
    assert any("4 of 32 layers" in note for note in head.notes)
    assert [one.step_s for one in read.samples] == [0.001, 0.002, 0.001, 0.002]
    assert [one.cpu_s for one in read.samples] == [0.0, 0.0015, 0.0, 0.0015]
    last = read.samples[-1]
    assert (last.decode_seqs, last.kv_tokens, last.prefill_tokens) == (4, 400, 64)
    assert last.prefill_token_pairs == token_pairs(64, 128)
    assert json.loads(path.read_text().splitlines()[0])["flags"]["cuda_graphs"] == "on"
