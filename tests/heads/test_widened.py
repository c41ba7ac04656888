"""Layers whose old outputs stay equal to the bit when others come, and plain ones, whose do not."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn

from frostline.heads.widened import WidenedConv1d, WidenedConv2d, WidenedLinear

SHAPES = list(itertools.product((7, 64, 192, 512), (1, 3, 10, 37, 100), (1, 5), (1, 7, 64)))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def filled(layer: nn.Module, seed: int = 0) -> nn.Module:
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed + i))
    return layer


def wider_than(old: nn.Module, layer: nn.Module, blocks: list[list[int]]) -> nn.Module:
    """The layer with random rows, of which the first block is the old layer's."""
    filled(layer, seed=7)
    with torch.no_grad():
        layer.weight[blocks[0]] = old.weight
        if old.bias is not None:
            layer.bias[blocks[0]] = old.bias
    if hasattr(layer, "set_blocks"):
        layer.set_blocks(blocks)
    return layer


def blocks_of(old: int, new: int, scattered: bool) -> list[list[int]]:
    rows = list(range(old + new))
    if scattered:
        rows = torch.randperm(old + new, generator=torch.Generator().manual_seed(old)).tolist()
    return [rows[:old], sorted(rows[old:])]


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@torch.no_grad()
def test_old_outputs_are_equal_to_the_bit_whatever_the_shape(dtype: torch.dtype, scattered: bool):
    wrong, naive = [], 0
    for features, rows, more, batch in SHAPES:
        old = filled(nn.Linear(features, rows, dtype=dtype, bias=features != 64))
        blocks = blocks_of(rows, more, scattered)
        options = {"dtype": dtype, "bias": features != 64}
        new = wider_than(old, WidenedLinear(features, rows + more, **options), blocks)
        plain = wider_than(old, nn.Linear(features, rows + more, **options), blocks)
        x = random(batch, features, seed=3, dtype=dtype)
        wanted = old(x)
        if not torch.equal(new(x)[:, blocks[0]], wanted):
            wrong.append((features, rows, more, batch))
        naive += not torch.equal(plain(x)[:, blocks[0]], wanted)
        assert torch.allclose(new(x), plain(x), rtol=0.1 if dtype == torch.bfloat16 else 1e-3, atol=1e-3)
    assert wrong == []
    # The failing twin. In bfloat16 sums are rounded so hard that their order mostly does not show.
    assert naive > 0 or dtype == torch.bfloat16


def inputs(features: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    wide = random(6, 2 * features, dtype=dtype)
    return {
        "rows": wide[:, :features].contiguous(),
        "columns apart": wide[:, ::2],
        "a slice": wide[:, :features],
        "transposed": random(features, 6, dtype=dtype).t(),
        "one sample": random(features, dtype=dtype),
        "tokens": random(2, 5, features, dtype=dtype),
        "tokens, permuted": random(5, features, 8, dtype=dtype).permute(2, 0, 1),
        "pixels": random(2, features, 3, 4, dtype=dtype).permute(0, 2, 3, 1),
        "expanded": random(1, features, dtype=dtype).expand(6, features),
        "none": random(0, features, dtype=dtype),
    }


MODES = {"gradients": torch.enable_grad, "no gradients": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", inputs(4))
def test_inputs_of_any_form_in_any_mode(kind: str, mode: str):
    wrong = []
    for features, rows, dtype in itertools.product((64, 192, 512), (3, 10, 37), (torch.float32, torch.float64)):
        old, x = filled(nn.Linear(features, rows, dtype=dtype)), inputs(features, dtype)[kind]
        for scattered, trained in itertools.product((False, True), (False, True)):
            blocks = blocks_of(rows, 5, scattered)
            new = wider_than(old, WidenedLinear(features, rows + 5, dtype=dtype), blocks)
            with MODES[mode]():
                got, wanted = new.requires_grad_(trained)(x), old.requires_grad_(trained)(x)
            assert got.requires_grad == (trained and mode == "gradients") == wanted.requires_grad
            if not torch.equal(got[..., blocks[0]], wanted):
                wrong.append((features, rows, dtype, scattered, trained))
    assert wrong == []


@torch.no_grad()
def test_whether_a_weight_requires_gradients_decides_over_bits_even_without_them():
    """The failing twin: rows that do not say so, as those that were picked out without gradients."""
    moved, threads = 0, torch.get_num_threads()
    torch.set_num_threads(2)  # one thread sums in the same order either way
    try:
        for features, rows in itertools.product((64, 192, 512), (10, 37, 100)):
            old, x = filled(nn.Linear(features, rows, dtype=torch.float64)), inputs(features, torch.float64)
            x = x["tokens, permuted"]
            moved += not torch.equal(nn.functional.linear(x, old.weight.detach(), old.bias), old(x))
    finally:
        torch.set_num_threads(threads)
    assert moved


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def through_torch(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_state(layer):
    other = filled(WidenedLinear(layer.in_features, layer.out_features), seed=50)
    other.set_blocks(layer.blocks)
    other.load_state_dict(through_pickle(layer.state_dict()))
    return other


def through_meta(layer):
    other = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    other.load_state_dict(layer.state_dict())
    return other


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch, through_state, through_meta])
@pytest.mark.parametrize("scattered", [False, True])
@torch.no_grad()
def test_copies_keep_the_bits(copied, scattered: bool):
    old = filled(nn.Linear(192, 10))
    blocks = blocks_of(10, 3, scattered)
    new = copied(wider_than(old, WidenedLinear(192, 13), blocks))
    for batch in (1, 7, 64):
        x = random(batch, 192, seed=batch)
        assert torch.equal(new(x)[:, blocks[0]], old(x))
        assert torch.equal(new.double()(x.double())[:, blocks[0]], old.double()(x.double()))
        new.float(), old.float()
    assert list(new.state_dict()) == ["weight", "bias"]


@torch.no_grad()
def test_it_loads_into_a_plain_layer_and_back():
    new, plain = filled(WidenedLinear(8, 5)), nn.Linear(8, 5)
    new.set_blocks([[1, 0], [4, 2, 3]])
    plain.load_state_dict(new.state_dict())
    x = random(4, 8)
    assert torch.allclose(plain(x), new(x), atol=1e-5)
    new.load_state_dict(nn.Linear(8, 5).state_dict())
    assert isinstance(new, nn.Linear)


@pytest.mark.parametrize("scattered", [False, True])
def test_gradients_are_those_of_a_plain_layer(scattered: bool):
    """In whole numbers, which float64 adds exactly in whatever order, so that equality is to the bit."""
    new, plain = WidenedLinear(6, 9, dtype=torch.float64), nn.Linear(6, 9, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.copy_(torch.randint(-9, 9, parameter.shape, generator=generator))
    plain.load_state_dict(new.state_dict())
    new.set_blocks([*blocks_of(5, 4, scattered)])
    x = torch.randint(-9, 9, (4, 6), generator=generator).double().requires_grad_()
    y = x.detach().clone().requires_grad_()
    weights = torch.randint(-9, 9, (4, 9), generator=generator).double()
    out, expected = new(x), plain(y)
    assert torch.equal(out, expected)
    (out.square() * weights).sum().backward()
    (expected.square() * weights).sum().backward()
    assert torch.equal(new.weight.grad, plain.weight.grad)
    assert torch.equal(new.bias.grad, plain.bias.grad)
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("scattered", [False, True])
def test_old_outputs_are_equal_while_training_and_under_autocast(scattered: bool):
    old = filled(nn.Linear(192, 10)).train()
    blocks = blocks_of(10, 3, scattered)
    new = wider_than(old, WidenedLinear(192, 13), blocks).train()
    for batch in (1, 7, 64):
        x = random(batch, 192)
        assert torch.equal(new(x)[:, blocks[0]], old(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(new(x)[:, blocks[0]], old(x))
            assert new(x).dtype == torch.bfloat16


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_convolutions(channels_last: bool, scattered: bool):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    wrong, naive = [], 0
    for channels, rows, kernel, dtype in itertools.product((8, 64), (1, 3, 21), (1, 3), (torch.float32, torch.float64)):
        options = {"kernel_size": kernel, "padding": kernel // 2, "dtype": dtype}
        old = filled(nn.Conv2d(channels, rows, **options)).to(memory_format=layout)
        blocks = blocks_of(rows, 4, scattered)
        new = wider_than(old, WidenedConv2d(channels, rows + 4, **options).to(memory_format=layout), blocks)
        plain = wider_than(old, nn.Conv2d(channels, rows + 4, **options).to(memory_format=layout), blocks)
        assert [w.stride() for w in new._rows_in_blocks("weight")] == [old.weight.stride()] * 2
        for batch, x_layout in itertools.product((1, 2), (torch.contiguous_format, torch.channels_last)):
            x = random(batch, channels, 9, 11, dtype=dtype).to(memory_format=x_layout)
            if not torch.equal(new(x)[:, blocks[0]], old(x)):
                wrong.append((channels, rows, kernel, dtype, batch))
            naive += not torch.equal(plain(x)[:, blocks[0]], old(x))
            assert torch.allclose(new(x), plain(x), atol=1e-3)
        assert torch.equal(new(x[0])[blocks[0]], old(x[0]))
    assert wrong == []
    assert naive > 0  # the failing twin


@torch.no_grad()
def test_convolutions_of_other_dimensions_and_geometry():
    old = filled(nn.Conv1d(6, 3, 3, padding=2, dilation=2, padding_mode="circular"))
    new = wider_than(old, WidenedConv1d(6, 5, 3, padding=2, dilation=2, padding_mode="circular"), [[0, 4, 2], [1, 3]])
    x = random(2, 6, 12)
    assert torch.equal(new(x)[:, [0, 4, 2]], old(x))


def test_blocks_are_the_rows_each_once():
    layer = WidenedLinear(2, 3)
    for blocks in ([[0, 1]], [[0, 1], [1, 2]], [[0, 1, 3]]):
        with pytest.raises(ValueError, match="are not the 3 rows, each once"):
            layer.set_blocks(blocks)
    x = random(4, 2)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))  # no blocks: all rows are one


@torch.no_grad()
def test_it_can_be_parametrized_itself():
    old = filled(nn.Linear(192, 10))
    blocks = blocks_of(10, 3, scattered=True)
    new = wider_than(old, WidenedLinear(192, 13), blocks)
    for layer in (old, new):
        nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh())
    x = random(7, 192)
    assert torch.equal(new(x)[:, blocks[0]], old(x))


def test_rows_in_order_need_no_buffer():
    layer = WidenedLinear(2, 3)
    layer.set_blocks([[0], [1, 2]])
    assert list(layer.buffers()) == []
    layer.set_blocks([[1], [0, 2]])
    assert [b.tolist() for b in layer.buffers()] == [[1, 0, 2]] * 2
    layer.set_blocks([[0], [1, 2]])
    assert list(layer.buffers()) == []


class Headed(nn.Module):
    def __init__(self, features: int, head: nn.Module) -> None:
        super().__init__()
        self.trunk = filled(nn.Linear(features, features))
        self.fc = head

    def forward(self, x):
        return self.fc(torch.relu(self.trunk(x)))


@pytest.mark.parametrize("scattered", [False, True])
@torch.no_grad()
def test_traced_and_exported(scattered: bool):
    old = filled(nn.Linear(64, 10))
    blocks = blocks_of(10, 3, scattered)
    model, x = Headed(64, wider_than(old, WidenedLinear(64, 13), blocks)), random(7, 64)
    wanted = Headed(64, old)(x)
    for made in (torch.fx.symbolic_trace(model), torch.compile(model, backend="aot_eager", fullgraph=True)):
        assert torch.equal(made(x)[:, blocks[0]], wanted)
    assert torch.equal(torch.export.export(model, (x,)).module()(x)[:, blocks[0]], wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scattered", [False, True])
@torch.no_grad()
def test_compiled_by_inductor(scattered: bool):
    """Not promised, as the compiler may choose; what is said of it in `widen` is checked here."""
    for features, rows, batch in ((64, 1, 1), (192, 10, 7), (512, 37, 1), (512, 3, 16)):
        torch.compiler.reset()
        old, x = filled(nn.Linear(features, rows)), random(batch, features)
        blocks = blocks_of(rows, 5, scattered)
        new = wider_than(old, WidenedLinear(features, rows + 5), blocks)
        before = torch.compile(Headed(features, old).eval())(x)
        after = torch.compile(Headed(features, new).eval())(x)
        assert torch.equal(after[:, blocks[0]], before)
