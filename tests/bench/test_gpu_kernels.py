"""The kernels compute what their names say, in a small size on the processor.

Skipped where PyTorch is not installed; the environment of `make vllm-env` has it.
"""

import pytest

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed here; make vllm-env brings it"
)

MODELS = ("llama-3.1-8b", "deepseek-v2-lite")


@pytest.fixture(params=MODELS)
def layer(request):
    from gpu_steps.kernels import Layer, Make
    from gpu_steps.shapes import SHAPES, small

    one = Layer(small(SHAPES[request.param]), 1024, Make("cpu", 1))
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            setattr(one, name, value.float())
    return one


@pytest.fixture
def hidden():
    return torch.randn(128, 256, generator=torch.Generator().manual_seed(1))


def close(left, right):
    assert torch.allclose(left, right, atol=1e-4, rtol=1e-3)


def test_a_prompt_in_two_chunks_is_attended_to_as_in_one(layer, hidden):
    from gpu_steps.sweep import Cell

    whole = layer._attention(hidden, Cell(0, 0, 128, 0))
    first = layer._attention(hidden[:80], Cell(0, 0, 80, 0))
    second = layer._attention(hidden[80:], Cell(0, 0, 48, 80))
    close(torch.cat((first, second)), whole)


def test_a_decode_is_a_chunk_of_one_token(layer, hidden):
    from gpu_steps.sweep import Cell

    layer._attention(hidden[:127], Cell(0, 0, 127, 0))
    chunk = layer._attention(hidden[127:], Cell(0, 0, 1, 127))
    decode = layer._attention(hidden[127:], Cell(1, 128, 0, 0))
    close(decode, chunk)


def test_streams_and_a_chunk_in_one_step_do_not_see_one_another(layer, hidden):
    from gpu_steps.sweep import Cell

    alone = layer._attention(hidden[:2], Cell(2, 64, 0, 0))
    mixed = layer._attention(hidden[:34], Cell(2, 64, 32, 0))
    close(mixed[:2], alone)
    close(mixed[2:], layer._attention(hidden[2:34], Cell(0, 0, 32, 0)))


def test_a_step_yields_a_token_per_stream_and_one_for_the_prompt():
    from gpu_steps.kernels import Model
    from gpu_steps.shapes import SHAPES, small
    from gpu_steps.sweep import Cell
    from gpu_steps.timing import step_times

    for name in MODELS:
        model = Model(small(SHAPES[name]), 1, 1024, "cpu", 1)
        cell = Cell(3, 64, 16, 32)
        states = model.body(model.inputs(cell), cell)
        assert states.shape == (19, 256)
        assert torch.isfinite(states).all()
        assert model.head(states, cell).shape == (4,)
        taken = step_times(model, cell, 2.0, 3, graph=False)
        assert len(taken) == 3
        assert all(one.wall_s > 0 for one in taken)
