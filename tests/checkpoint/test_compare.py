"""Comparing checkpoints by value; torch in float64 on whole tensors is the reference."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import frostline as fl
from frostline.checkpoint.compare import _PIECE, compare
from frostline.checkpoint.compared_row import Row
from frostline.checkpoint.comparison import Comparison
from frostline.checkpoint.stored import StoredTensor, as_bytes, in_memory
from frostline.errors import CorruptCheckpoint
from frostline.state.names import is_under

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


def stored(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    return {name: in_memory(tensor) for name, tensor in tensors.items()}


def only(comparison: Comparison) -> Row:
    (row,) = comparison.rows
    return row


def one(old: Tensor, new: Tensor) -> Row:
    return only(compare(stored({"a": old}), stored({"a": new})))


def differ(old: Tensor, new: Tensor) -> int:
    """How many elements differ in any bit, byte by byte."""
    size = old.dtype.itemsize
    return int((as_bytes(old.contiguous()) != as_bytes(new.contiguous())).reshape(-1, size).any(1).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 40), share=st.floats(0, 1))
def test_figures_are_those_of_float64_over_whole_tensors(
    dtype: torch.dtype, seed: int, size: int, share: float
) -> None:
    """Over any bits at all: NaNs of every payload, infinities, subnormal numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        if dtype is torch.bool:
            return torch.randint(0, 2, (size,), generator=generator).bool()
        return torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8, generator=generator).view(dtype)

    old, new = draw(), draw()
    keep = torch.rand(size, generator=generator) < share
    bits = torch.where(
        keep[:, None], as_bytes(old).reshape(size, dtype.itemsize), as_bytes(new).reshape(size, dtype.itemsize)
    )
    new = bits.contiguous().flatten().view(dtype)
    row = one(old, new)
    assert row.elements_changed == differ(old, new)
    assert row.change == ("changed" if differ(old, new) else "same")
    wide = torch.complex128 if dtype.is_complex else torch.float64
    a, b = old.to(wide), new.to(wide)
    gap = (b - a).abs()
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, gap)
    assert row.max_abs is not None
    assert row.mean_abs is not None
    if gap.isnan().any():
        assert math.isnan(row.max_abs)
    else:
        # The absolute value of a complex number is computed by two libraries, each rounding in its own way.
        assert row.max_abs == (pytest.approx(float(gap.max()), rel=1e-15) if dtype.is_complex else float(gap.max()))
        # Two orders of adding up to 40 numbers: each of the additions rounds by at most 2**-53 of the sum.
        assert row.mean_abs == pytest.approx(float(gap.mean()), rel=80 * 2**-53, abs=0)


@dataclass(frozen=True, eq=False)
class Once(StoredTensor):
    """A tensor of a file whose reader has one buffer; counts how often it is read."""

    make: Callable[[int, int], Tensor]
    reads: list[int]

    def read(self) -> Tensor:
        raise AssertionError("comparing has no business with a whole tensor")

    def pieces(self, most: int) -> Iterator[Tensor]:
        self.reads.append(most)
        buffer = torch.empty(most, dtype=torch.uint8)
        for start in range(0, self.nbytes, most):
            piece = as_bytes(self.make(start // self.dtype.itemsize, min(self.numel, (start + most) // 4)))
            buffer[: len(piece)] = piece
            yield buffer[: len(piece)]


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_of_long_tensors_add_up(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3 * 2**20 + 5

    def plain(start: int, end: int) -> Tensor:
        return torch.arange(start, end, dtype=torch.float32)

    def moved(start: int, end: int) -> Tensor:
        values = plain(start, end)
        return values + 2.0 * (values.long() % 1000 == 7) - 8.0 * (values == size - 1)

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    olds = {f"l{i}.weight": Once((size,), torch.float32, i, plain, []) for i in range(4)}
    news = {name: Once((size,), torch.float32, name, moved if i == 2 else plain, []) for i, name in enumerate(olds)}
    comparison = compare(olds, news)
    assert [row.change for row in comparison.rows] == ["same", "same", "changed", "same"]
    row = comparison.moved[0]
    sevens = len(range(7, size, 1000))
    assert (row.max_abs, row.elements_changed) == (8.0, sevens + 1)
    assert row.mean_abs == (2.0 * sevens + 8.0) / size
    assert [entry.reads for entry in (*olds.values(), *news.values())] == [[_PIECE]] * 8


def test_tied_tensors_are_read_once() -> None:
    old, new = (Once((9,), torch.float32, "place", lambda a, b: torch.ones(b - a), []) for _ in range(2))
    comparison = compare({"wte": old, "head": old}, {"wte": new, "head": new})
    assert comparison.still == 2
    assert (len(old.reads), len(new.reads)) == (1, 1)


def test_an_error_of_a_reader_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(start: int, end: int) -> Tensor:
        raise CorruptCheckpoint("cut short")

    entry = Once((2**22,), torch.float32, 0, damaged, [])
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with pytest.raises(CorruptCheckpoint):
            compare({"a": entry}, {"a": entry})


def test_equal_means_equal_to_the_bit() -> None:
    zero = torch.zeros(3)
    row = one(zero, -zero)
    assert (row.change, row.max_abs, row.elements_changed) == ("changed", 0.0, 3)
    nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    row = one(nan[:1], nan[1:])
    assert (row.change, row.max_abs, row.elements_changed) == ("changed", 0.0, 1)
    assert one(nan, nan.clone()).change == "same"
    # The twin: what most tools do finds no difference in the one, and one where there is none in the other.
    assert torch.allclose(zero, -zero)
    assert not torch.allclose(nan, nan)


def test_infinities_and_nans() -> None:
    inf = math.inf
    assert one(torch.tensor([inf, 1.0]), torch.tensor([inf, 3.0])).max_abs == 2.0
    assert one(torch.tensor([inf, 1.0]), torch.tensor([-inf, 3.0])).max_abs == inf
    row = one(torch.tensor([math.nan, 1.0]), torch.tensor([0.0, 3.0]))
    assert math.isnan(row.max_abs or 0.0)
    assert row.elements_changed == 2
    # A NaN stays, whatever comes behind it.
    old = torch.zeros(_PIECE)
    new = old.clone()
    new[0], new[-1] = math.nan, 5.0
    assert math.isnan(one(old, new).max_abs or 0.0)


def test_differences_that_float32_would_lose() -> None:
    old = torch.tensor([16777216.0, 3e38])
    new = torch.tensor([-1.0, -3e38])
    row = one(old, new)
    assert row.max_abs == 2 * float(torch.tensor(3e38).double())
    assert torch.isinf((new - old).abs().max())  # the twin
    assert one(old[:1], new[:1]).max_abs == 16777217.0


def test_half_complex_and_dtypes_of_bits() -> None:
    bits = torch.arange(8, dtype=torch.int16)
    halves = bits.view(torch.float16)
    other = (bits + 1024).view(torch.float16)
    old, new = (torch.view_as_complex(x.float().reshape(-1, 2)) for x in (halves, other))
    entries = [
        Once((4,), torch.complex32, i, lambda a, b, x=x: x[: 2 * (b - a)], []) for i, x in enumerate((halves, other))
    ]
    row = only(compare({"a": entries[0]}, {"a": entries[1]}))
    assert row.max_abs == pytest.approx(float((new.to(torch.complex128) - old).abs().max()), rel=1e-15)
    packed = getattr(torch, "float4_e2m1fn_x2", None)
    if packed is not None:
        values = torch.arange(6, dtype=torch.uint8)
        row = one(values.view(packed), values.flip(0).view(packed))
        assert (row.change, row.max_abs, row.mean_abs, row.elements_changed) == ("changed", None, None, 6)


def test_names_shapes_and_dtypes_that_differ() -> None:
    old = {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3), "gone": torch.zeros(1), "empty": torch.zeros(0)}
    new = {
        "fc.weight": torch.zeros(5, 2),
        "fc.bias": torch.zeros(3).half(),
        "come": torch.zeros(1),
        "empty": torch.zeros(0),
    }
    comparison = compare(stored(old), stored(new))
    found = {row.path: row for row in comparison.rows}
    assert {name: row.change for name, row in found.items()} == {
        "fc.weight": "reshaped",
        "fc.bias": "retyped",
        "gone": "removed",
        "empty": "same",
        "come": "added",
    }
    assert (found["fc.weight"].shape_before, found["fc.weight"].shape_after) == ((3, 2), (5, 2))
    assert (found["fc.bias"].dtype_before, found["fc.bias"].dtype_after) == ("float32", "float16")
    assert (found["gone"].shape_after, found["come"].dtype_before) == (None, None)
    assert comparison.verdict == [
        "empty: equal to the bit (1 tensor)",
        "added: 1 tensor: come",
        "removed: 1 tensor: gone",
        "reshaped: 1 tensor: fc.weight (3, 2) → (5, 2)",
        "retyped: 1 tensor, float32 → float16: fc.bias",
    ]
    both = one(torch.zeros(3, 2), torch.zeros(3).half())
    assert (both.change, both.shape_after, both.dtype_after) == ("reshaped", (3,), "float16")
    assert Comparison((both,)).verdict == ["reshaped: 1 tensor: a (3, 2) float32 → (3,) float16"]


def test_nothing_differs_and_nothing_there() -> None:
    same = stored({"a": torch.zeros(2), "b": torch.ones(2)})
    assert not compare(same, same)
    assert str(compare(same, same)) == "all 2 tensors equal to the bit"
    assert str(compare({}, {})) == "no tensors on either side"
    assert compare(same, same)._repr_html_() == "<p>all 2 tensors equal to the bit</p>"


def test_without_values_nothing_is_read() -> None:
    old, new = (Once((9,), torch.float32, 0, lambda a, b: torch.ones(b - a), []) for _ in range(2))
    comparison = compare({"a": old, "b": old}, {"a": new}, values=False)
    assert [row.change for row in comparison.rows] == ["alike", "removed"]
    assert (old.reads, new.reads) == ([], [])
    assert comparison.still == 1
    assert str(comparison).startswith("1 of 2 tensors differ, 1 alike\n")
    assert str(compare({"a": old}, {"a": new}, values=False)) == (
        "all 1 tensor alike in shape and dtype; values were not compared"
    )


# What happened, at a glance.


class Net(nn.Module):
    """A trunk with norms, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()) for _ in range(3)))
        self.heads = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.heads["a"](self.trunk(x).mean((2, 3)))


def train(net: nn.Module, *, eval_trunk: bool) -> None:
    """Train head a of a net whose trunk is frozen by `requires_grad`, as most do it."""
    generator = torch.Generator().manual_seed(1)
    net.trunk.requires_grad_(False)
    net.train()
    if eval_trunk:
        net.trunk.eval()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        net(torch.randn(8, 2, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def after(net: nn.Module, change: Callable[[nn.Module], None]) -> Comparison:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    change(net)
    return compare(stored(before), stored(net.state_dict()))


def test_statistics_that_moved_in_a_frozen_trunk_are_said_first(net: Net) -> None:
    snap = fl.snapshot(net, values=True)
    comparison = after(net, lambda n: train(n, eval_trunk=False))
    size = max(row.max_abs or 0.0 for row in snap.diff(net).moved if row.role in {"norm.mean", "norm.var"})
    first, second, third = comparison.verdict
    assert first == (
        "trunk: weights and biases equal to the bit, norm statistics moved "
        f"(6 of 6 norm statistics by up to {size:.3g}, 3 of 3 norm counters by up to 2): frozen by requires_grad alone"
    )
    assert second == "heads.b: equal to the bit (2 tensors)"
    assert third.startswith("heads.a: trained (1 of 1 weights by up to 0.")
    # The same tensors as an independent walk over the live model says.
    assert {row.path for row in comparison.moved} == {r.path for r in snap.diff(net).where("parameter", "buffer").moved}
    figures = {row.path: row.max_abs for row in comparison.moved}
    assert figures == {row.path: row.max_abs for row in snap.diff(net).where("parameter", "buffer").moved}


def test_a_trunk_that_is_frozen_is_said_to_be(net: Net) -> None:
    comparison = after(net, lambda n: train(n, eval_trunk=True))
    assert comparison.verdict[0] == "trunk, heads.b: equal to the bit (23 tensors)"
    assert [line.split(":")[0] for line in comparison.verdict] == ["trunk, heads.b", "heads.a"]


def test_the_usual_tool_does_not_tell_the_two_apart(net: Net) -> None:
    """The twin: whoever compares parameters, as optimizers know them, sees a frozen trunk in both."""
    before = copy.deepcopy(net)
    train(net, eval_trunk=False)
    pairs = zip(before.trunk.parameters(), net.trunk.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert compare(stored(before.state_dict()), stored(net.state_dict())).verdict[0].startswith("trunk: weights and")


def touch(*paths: str) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        for name, tensor in net.state_dict().items():
            if any(is_under(name, path) for path in paths):
                tensor.add_(1)

    return change


def test_paths_are_as_short_as_they_can_be_and_no_shorter(net: Net) -> None:
    def states(*paths: str) -> dict[str, str]:
        return {s.title: s.state for s in after(copy.deepcopy(net), touch(*paths)).subtrees()}

    assert states("trunk.1", "heads") == {
        "trunk.{0,2} (x2)": "untouched",
        "trunk.1": "trained",
        "heads": "trained",
    }
    # A norm whose weights were left alone while its convolution trained, and whose statistics moved with it.
    assert states("trunk.1.0", "trunk.1.1.running_mean") == {
        "trunk.1.1": "drifted",
        "trunk.{0,2} (x2)": "untouched",
        "heads": "untouched",
        "trunk.1.0": "trained",
    }
    assert states("trunk", "heads") == {"trunk": "trained", "heads": "trained"}
    everything = after(copy.deepcopy(net), touch("trunk", "heads")).verdict
    assert len(everything) == 1
    assert everything[0].startswith("everything: trained (5 of 5 weights by up to 1, 5 of 5 biases")


def test_one_prefix_over_everything_is_looked_through(net: Net) -> None:
    inside = nn.ModuleDict({"model": net})
    comparison = after(inside, touch("model.heads"))
    assert [s.title for s in comparison.subtrees()] == ["model.trunk", "model.heads"]


def test_only_biases_trained(net: Net) -> None:
    biases = [name for name in net.state_dict() if name.endswith("0.bias")]
    comparison = after(net, touch(*biases))
    assert comparison.verdict == [
        "trunk.[0-2].1 (x3), heads: equal to the bit (19 tensors)",
        "trunk.[0-2].0 (x3): trained (0 of 3 weights, 3 of 3 biases by up to 1)",
    ]


def test_groups_count_by_kind(net: Net) -> None:
    comparison = after(net, touch("trunk.0.1.running_mean", "trunk.1.1.running_var", "trunk.2.1.num_batches_tracked"))
    groups = {(g.subtree, g.role_class): g for g in comparison.groups()}
    statistics = groups["trunk", "norm statistics"]
    assert (statistics.state, statistics.changed, statistics.total, statistics.max_abs) == ("drifted", 2, 6, 1.0)
    assert groups["trunk", "norm counters"].changed == 1
    assert [g.role_class for g in comparison.groups() if g.subtree == "trunk"] == [
        "weights",
        "biases",
        "norm weights",
        "norm statistics",
        "norm counters",
    ]
    assert sum(g.total for g in comparison.groups()) == len(comparison.rows)


def test_counters_of_an_old_file_do_not_hide_what_happened(net: Net) -> None:
    """Files of torch 0.3 have no ``num_batches_tracked``."""
    before = {n: t.clone() for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    train(net, eval_trunk=False)
    comparison = compare(stored(before), stored(net.state_dict()))
    assert comparison.verdict[0].startswith("trunk: weights and biases equal to the bit, norm statistics moved (6 of 6")
    assert comparison.verdict[-1] == "added: 3 tensors: trunk.[0-2].1.num_batches_tracked (x3)"
    assert comparison.verdict[0].endswith("; not compared: 3 added")


def test_what_was_not_compared_is_not_said_to_be_equal(net: Net) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    halved = {name: t.half() if t.is_floating_point() else t + 1 for name, t in before.items()}
    comparison = compare(stored(before), stored(halved))
    assert comparison.verdict[0] == (
        "trunk: norm counters moved (3 of 3 norm counters by up to 1); not compared: 18 retyped"
    )
    assert not any("equal to the bit" in line or "frozen" in line for line in comparison.verdict)
    unread = compare(stored(before), stored(halved), values=False)
    assert unread.verdict[0] == (
        "trunk: alike in shape and dtype, values not compared (3 tensors); not compared: 18 retyped"
    )
    assert "equal to the bit" not in str(unread)


def test_a_part_of_which_some_is_retyped_is_not_said_to_be_frozen(net: Net) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    train(net, eval_trunk=False)
    after = {n: t.half() if n.endswith("0.weight") else t for n, t in net.state_dict().items()}
    assert (
        compare(stored(before), stored(after))
        .verdict[0]
        .startswith("trunk: weights and biases that are in both equal to the bit, norm statistics moved (6 of 6")
    )
    assert "frozen" not in str(compare(stored(before), stored(after)))


def test_what_was_removed_stands_beside_what_is_equal(net: Net) -> None:
    before = stored(net.state_dict())
    after = {name: entry for name, entry in before.items() if "running" not in name and "num_batches" not in name}
    comparison = compare(before, after)
    assert comparison.verdict[:2] == [
        "trunk: equal to the bit (12 tensors); not compared: 9 removed",
        "heads: equal to the bit (4 tensors)",
    ]
    table = str(comparison).partition("\n\n")[2]
    assert [line.split()[:3] for line in table.splitlines()[2:]] == [
        ["trunk", "norm", "statistics"],
        ["trunk", "norm", "counters"],
    ]


def test_statistics_alone_that_moved_are_not_laid_to_training(net: Net) -> None:
    """Recalibration does the same to a file as train mode does."""
    comparison = after(copy.deepcopy(net), touch(*(n for n in net.state_dict() if "running" in n)))
    assert comparison.verdict[0].endswith(
        "by up to 1, 0 of 3 norm counters): nothing was trained, so train mode or recalibration"
    )
    # The twin: a head that was replaced has been trained, too.
    new = {
        n: torch.cat([t, t]) if n.startswith("heads.a") else t + ("running" in n) for n, t in net.state_dict().items()
    }
    assert compare(stored(net.state_dict()), stored(new)).verdict[0].endswith("): frozen by requires_grad alone")


def test_nans_have_a_line_and_do_not_hide_how_far_the_rest_moved() -> None:
    old = {"a.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2, 2), "c.weight": torch.full((2, 2), math.nan)}
    new = {
        "a.weight": torch.tensor([[math.nan, math.nan], [0.0, 1.0]]),
        "b.weight": torch.ones(2, 2) / 2,
        "c.weight": torch.tensor([[math.nan, 0.0], [math.nan, math.nan]]),
    }
    comparison = compare(stored(old), stored(new))
    assert comparison.verdict == [
        "NaN: a.weight, 2 values",
        "NaN before, a number now: c.weight, 1 value",
        "everything: trained (3 of 3 weights by up to 0.5)",
    ]
    assert [(row.nans_gained, row.nans_lost) for row in comparison.rows] == [(2, 0), (0, 0), (0, 1)]
    complex_ = one(torch.zeros(2, dtype=torch.complex64), torch.tensor([complex(0, math.nan), 1]))
    assert complex_.nans_gained == 1
    # Counted over all pieces of a long tensor.
    long = torch.zeros(2 * _PIECE)
    holes = long.clone()
    holes[0] = holes[-1] = math.nan
    assert one(long, holes).nans_gained == 2


def test_the_table_fits_and_names_are_escaped(net: Net) -> None:
    hostile = "fc.\x1b[2J<script>.weight"
    old = {hostile: torch.zeros(2, 2), "x" * 300 + ".weight": torch.zeros(2, 2), "fc\n.bias": torch.zeros(1)}
    new = {name: tensor + 1 for name, tensor in old.items()} | {"\x07": torch.zeros(1)}
    comparison = compare(stored(old), stored(new))
    text = str(comparison)
    assert all(line.isprintable() for line in text.split("\n"))
    table = text.partition("\n\n")[2].split("\n")
    assert max(map(len, table)) <= 100
    html = comparison._repr_html_()
    assert "<script>" not in html
    assert "\x1b" not in html
    # A file that reads JSON gets the names as they are.
    again = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert {row["path"] for row in again["moved"]} == set(new)


def test_json_says_the_same_and_holds_no_number_that_json_lacks() -> None:
    old = {"bn.running_mean": torch.zeros(2), "bn.running_var": torch.ones(2), "bn.weight": torch.ones(2)}
    new = {**old, "bn.running_mean": torch.tensor([math.nan, 0.0]), "bn.running_var": torch.tensor([math.inf, 1.0])}
    data = json.loads(json.dumps(compare(stored(old), stored(new)).to_json(), allow_nan=False))
    assert data["schema_version"] == 1
    assert data["still"] == 1
    assert [(row["path"], row["role"], row["max_abs"]) for row in data["moved"]] == [
        ("bn.running_mean", "norm.mean", "nan"),
        ("bn.running_var", "norm.var", "inf"),
    ]
    assert data["groups"][1] == {
        "subtree": "",
        "state": "drifted",
        "role_class": "norm statistics",
        "total": 2,
        "changed": 2,
        "max_abs": "nan",
        "mean_abs": "nan",
        "added": 0,
        "removed": 0,
        "reshaped": 0,
        "retyped": 0,
    } | {"subtree": data["groups"][1]["subtree"]}
    assert data["verdict"] == [
        "NaN: bn.running_mean, 1 value",
        (
            "everything: weights and biases equal to the bit, norm statistics moved "
            "(2 of 2 norm statistics by up to inf): nothing was trained, so train mode or recalibration"
        ),
    ]


@given(
    st.lists(st.text(st.sampled_from("ab.01"), max_size=8), unique=True, max_size=12),
    st.sets(st.integers(0, 11)),
    st.sets(st.integers(0, 11)),
)
@settings(deadline=None)
def test_any_names_are_cut_into_sub_trees_that_hold_each_row_once(
    names: list[str], changed: set[int], added: set[int]
) -> None:
    old = {n: torch.zeros(1) for i, n in enumerate(names) if i not in added}
    new = {n: torch.ones(1) if i in changed else torch.zeros(1) for i, n in enumerate(names)}
    comparison = compare(stored(old), stored(new))
    subtrees = comparison.subtrees()
    assert sorted(row.path for subtree in subtrees for row in subtree.rows) == sorted(names)
    for subtree in subtrees:
        assert all(any(not path or is_under(row.path, path) for path in subtree.paths) for row in subtree.rows)
        moved = any(row.change == "changed" for row in subtree.rows)
        assert moved == (subtree.state in {"drifted", "trained"})
    str(comparison)
    json.dumps(comparison.to_json(), allow_nan=False)


def test_a_name_of_many_dots_does_not_use_up_the_stack() -> None:
    deep = ".".join(["a"] * 3000)
    old = {f"{deep}.b.weight": torch.zeros(1, 1), f"{deep}.c.weight": torch.zeros(1, 1)}
    new = {**old, f"{deep}.c.weight": torch.ones(1, 1)}
    assert [s.state for s in compare(stored(old), stored(new)).subtrees()] == ["untouched", "trained"]


@pytest.mark.real_data
def test_a_real_checkpoint_whose_statistics_moved(resnet20: Callable[..., nn.Module], resnet20_file: Path) -> None:
    model = resnet20()
    loaded = torch.load(resnet20_file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in loaded.items()}, strict=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        model.linear.weight += 0.5
    verdict = compare(stored(before), stored(model.state_dict())).verdict
    assert verdict[0].startswith(
        "bn1, layer[1-3] (x3): weights and biases equal to the bit, norm statistics moved "
        "(38 of 38 norm statistics by up to "
    )
    assert verdict[1:] == [
        "conv1: equal to the bit (1 tensor)",
        "linear: trained (1 of 1 weights by up to 0.5, 0 of 1 biases)",
    ]
