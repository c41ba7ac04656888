"""Snapshots: what moved, by how much, and putting it back to the bit."""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib
import json
import math
import pickle
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from frostline.errors import CannotDigest, NothingSelected, SnapshotError
from frostline.state.digest import digest
from frostline.state.inventory import inventory
from frostline.state.selection import select
from frostline.state.snapshot import Snapshot, entries_of, record_entries, snapshot

NAN, INF = math.nan, math.inf


class Net(nn.Module):
    """Convolution, batch norm, dropout, a token, an own buffer, a non-persistent one, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.arange(4.0))
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.fc.weight
        self.register_buffer("small", torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(3), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("phase", torch.tensor([1 + 1j]))
        self.register_buffer("empty", torch.zeros(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.fc(self.drop(self.bn(self.conv(x)).mean((2, 3)))))


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def memory(model: nn.Module) -> dict[str, bytes]:
    """Every tensor's bytes by path, read from memory."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {
        path: bytes(str((t.dtype, t.shape)), "ascii") + (ctypes.string_at(t.data_ptr(), t.nbytes) if t.numel() else b"")
        for path, t in ((p, t.detach().contiguous()) for p, t in tensors.items())
    }


def flags(model: nn.Module) -> dict[str, bool]:
    modes = {f"{p}.training".lstrip("."): m.training for p, m in model.named_modules()}
    return modes | {f"{p}.requires_grad": t.requires_grad for p, t in model.named_parameters(remove_duplicate=False)}


def step(model: nn.Module, count: int = 1) -> None:
    """Some steps of ordinary training."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()


# ---------------------------------------------------------------- what moved


def test_nothing_has_moved_in_a_model_that_was_only_read() -> None:
    model = net()
    state = torch.get_rng_state()
    before = snapshot(model, values=True)
    assert torch.equal(torch.get_rng_state(), state)
    diff = before.diff(model)
    assert not diff
    assert (diff.moved, diff.still) == ([], len(before))
    assert list(before) == list(inventory(model))
    assert before.diff(snapshot(model)).still == len(before)
    assert all(p.grad is None for p in model.parameters())


def test_the_bug_that_the_library_exists_for() -> None:
    """`requires_grad=False` and `train()`: statistics move, and the usual comparisons do not see it."""
    model = net()
    model.requires_grad_(False)
    before = snapshot(model, values="buffers")
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    versions = {n: b._version for n, b in model.named_buffers()}
    model.train()(torch.ones(4, 1, 8, 8))
    diff = before.diff(model)
    assert diff.paths == ["bn.running_mean", "bn.running_var", "bn.num_batches_tracked"]
    assert all(row.max_abs is not None for row in diff.moved)
    # The twins: comparing parameters sees nothing, comparing versions sees the counter alone.
    assert all(torch.equal(parameters[n], p) for n, p in model.named_parameters())
    assert [n for n, b in model.named_buffers() if b._version != versions[n]] == ["bn.num_batches_tracked"]


def test_what_a_state_dict_cannot_tell() -> None:
    model = net()
    before, saved = snapshot(model), copy.deepcopy(model.state_dict())
    model.count.add_(1)  # not persistent
    model.bn.eval()
    model.bn.eps = 1e-3
    model.drop.p = 0.1
    model.fc.weight.requires_grad_(False)
    diff = before.diff(model)
    assert [(row.path, row.kind, row.before, row.after) for row in diff.moved if row.kind != "buffer"] == [
        ("bn.training", "mode", True, False),
        ("bn.eps", "config", 1e-5, 1e-3),
        ("drop.p", "config", 0.5, 0.1),
        ("fc.weight.requires_grad", "requires_grad", True, False),
        ("tied.weight.requires_grad", "requires_grad", True, False),
    ]
    assert [row.path for row in diff.moved if row.kind == "buffer"] == ["count"]
    now = model.state_dict()
    assert all(torch.equal(saved[key], now[key]) for key in saved)


def reference_figures(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """In float64 (complex128), with a mean that is exact but for its last rounding."""
    wide = np.complex128 if np.iscomplexobj(before) else np.float64
    gap = np.abs(after.astype(wide) - before.astype(wide)).ravel()
    return float(gap.max()), math.fsum(gap.tolist()) / gap.size


@pytest.mark.parametrize("keep", [True, "buffers", False])
def test_figures_are_those_of_float64(keep) -> None:
    model = net()
    old = {p: t.detach().clone() for p, t in inventory(model).tensors.items()}
    bytes_before = memory(model)
    before = snapshot(model, values=keep)
    step(model)
    with torch.no_grad():
        model.small.mul_(1.5)
        model.phase.add_(1j)
        model.mask.logical_not_()
    diff = before.diff(model)
    tensors = inventory(model).tensors
    now = memory(model)
    assert set(diff.paths) == {p for p in now if now[p] != bytes_before[p]}
    assert {"conv.weight", "bn.running_var", "fc.weight", "tied.weight", "small", "phase", "mask"} <= set(diff.paths)
    for row in diff.moved:
        kept = keep is True or (keep == "buffers" and row.kind == "buffer")
        if not kept:
            assert (row.max_abs, row.mean_abs) == (None, None)
            continue
        new = tensors[row.path].detach()
        pair = [t.double().numpy() if t.dtype is torch.bfloat16 else t.numpy() for t in (old[row.path], new)]
        largest, mean = reference_figures(*pair)
        assert row.max_abs == largest
        # n terms, all of one sign: any order of summation is within n units of the last place (2**-52).
        assert row.mean_abs == pytest.approx(mean, rel=new.numel() * 2**-52, abs=0)


@pytest.mark.parametrize(
    ("before", "after", "largest", "mean"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5, 0.25),
        ([0.0, 0.0], [-0.0, 0.0], 0.0, 0.0),  # moved, by nothing that a subtraction could see
        ([INF, 1.0], [INF, 2.0], 1.0, 0.5),
        ([INF], [-INF], INF, INF),
        ([1.0], [INF], INF, INF),
        ([NAN, 1.0], [NAN, 3.0], 2.0, 1.0),
        ([NAN, 1.0], [0.0, 1.0], NAN, NAN),
        ([0.0, 1.0], [NAN, 1.0], NAN, NAN),
        ([1e38], [-1e38], 2e38, 2e38),
        ([2.0**24], [2.0**24 + 2], 2.0, 2.0),
    ],
)
def test_figures_of_special_values(before: list[float], after: list[float], largest: float, mean: float) -> None:
    model = nn.Module()
    model.register_buffer("b", torch.tensor(before))
    taken = snapshot(model, values=True)
    model.b.copy_(torch.tensor(after))
    [row] = taken.diff(model).moved
    assert row.max_abs == pytest.approx(largest, rel=1e-7, nan_ok=True)  # float32 of 1e38
    assert row.mean_abs == pytest.approx(mean, rel=1e-7, nan_ok=True)
    [again] = taken.diff(snapshot(model, values=True)).moved
    assert str(again) == str(row)


def test_nan_that_stays_is_still() -> None:
    model = nn.Module()
    model.register_buffer("b", torch.tensor([NAN, -0.0, INF]))
    taken = snapshot(model, values=True)
    assert taken.diff(model).still == 2
    assert not torch.equal(model.b, model.b.clone())  # the twin: torch.equal says that it moved
    model.b[0] = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)[0]  # another NaN
    [row] = taken.diff(model).moved
    assert row.max_abs == 0.0


def test_dtypes_without_arithmetic_have_no_figures() -> None:
    model = nn.Module()
    kinds = [n for n in dir(torch) if n.startswith("float8_") or n == "float4_e2m1fn_x2"]
    for name in kinds:
        model.register_buffer(name, torch.ones(2, dtype=torch.uint8).view(getattr(torch, name)))
    taken = snapshot(model, values=True)
    for name in kinds:
        getattr(model, name).view(torch.uint8).fill_(2)
    diff = taken.diff(model)
    assert diff.paths == kinds
    for row in diff.moved:
        assert (row.max_abs is None) == (row.path == "float4_e2m1fn_x2")
    taken.restore(model)
    assert not taken.diff(model)


def test_tied_tensors_move_under_every_name() -> None:
    model = net()
    before = snapshot(model, values=True)
    with torch.no_grad():
        model.fc.weight.add_(1)
    assert before.diff(model).paths == ["fc.weight", "tied.weight"]
    # Tied or not is no difference of values; a tie that comes apart is seen when the values do.
    model = net()
    model.tied.weight = nn.Parameter(model.fc.weight.detach().clone())
    assert not before.diff(model)


# ---------------------------------------------------------------- entries that come, go or change their type


def test_added_and_removed_entries() -> None:
    model = net()
    before = snapshot(model, values=True)
    model.extra = nn.BatchNorm1d(1, affine=False)
    model.drop = nn.Identity()
    diff = before.diff(model)
    assert [(row.path, row.change) for row in diff.moved] == [
        ("drop.p", "removed"),
        ("extra.running_mean", "added"),
        ("extra.running_var", "added"),
        ("extra.num_batches_tracked", "added"),
        ("extra.training", "added"),
        ("extra.eps", "added"),
        ("extra.momentum", "added"),
        ("extra.affine", "added"),
        ("extra.track_running_stats", "added"),
    ]
    removed, added = diff.moved[:2]
    assert (removed.before, removed.after) == (0.5, None)
    assert (added.before, added.after) == (None, digest(torch.zeros(1)))
    assert diff.still == len(before) - 1


def test_retyped_entries() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("b", torch.zeros(2))
    before = snapshot(model, values=True)
    model.weight = nn.Parameter(model.weight.detach().half())
    model.bias = nn.Parameter(torch.zeros(3))
    del model.b
    model.b = nn.Parameter(torch.zeros(2))
    rows = {row.path: (row.change, row.before, row.after, row.max_abs) for row in before.diff(model).moved}
    assert rows == {
        "weight": ("retyped", "parameter float32 (2, 2)", "parameter float16 (2, 2)", None),
        "bias": ("retyped", "parameter float32 (2,)", "parameter float32 (3,)", None),
        "b": ("retyped", "buffer float32 (2,)", "parameter float32 (2,)", None),
        "b.requires_grad": ("added", None, True, None),
    }


# ---------------------------------------------------------------- parts


def test_a_snapshot_of_a_part_looks_at_that_part_only() -> None:
    model = net()
    part, whole = snapshot(model, "bn", model.token, values=True), snapshot(model)
    assert part.partial
    assert not whole.partial
    assert set(part) == {
        "token",
        "token.requires_grad",
        *(p for p in inventory(model) if p.startswith("bn.")),
    }
    step(model)
    model.eval()
    assert part.diff(model).paths == [
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
        "bn.training",
    ]
    part.restore(model)
    assert not part.diff(model)
    assert not model.training
    assert model.bn.training
    assert "conv.weight" in whole.diff(model).paths


def test_a_part_and_the_whole_compare_what_both_cover() -> None:
    model = net()
    part, whole = snapshot(model, "bn"), snapshot(model)
    assert (bool(part.diff(whole)), part.diff(whole).still) == (False, len(part))
    assert (bool(whole.diff(part)), whole.diff(part).still) == (False, len(part))
    model.bn.eval()
    later = snapshot(model, "bn")
    assert whole.diff(later).paths == part.diff(later).paths == ["bn.training"]


def test_entries_of_a_selection() -> None:
    model = net()
    entries = inventory(model)
    assert list(entries_of(select(model, "*.running_mean"), entries)) == ["bn.running_mean"]
    assert "bn.training" not in entries_of(select(model, "!bn.weight"), entries)
    assert "training" not in entries_of(select(model, "!bn.weight"), entries)
    assert "bn.bias" in entries_of(select(model, "!bn.weight"), entries)
    recorded = record_entries(entries.of("buffer"), values=True)
    assert recorded.partial
    assert set(recorded) == set(dict(model.named_buffers()))
    assert not recorded.diff(model)


def test_a_selector_without_a_match_and_a_tensor_without_bytes() -> None:
    with pytest.raises(NothingSelected):
        snapshot(net(), "trunk")
    with pytest.raises(CannotDigest, match=r"'0\.weight'"):
        snapshot(nn.Sequential(nn.LazyLinear(2)))
    with pytest.raises(CannotDigest, match=r"'0\.bias'|'0\.weight'"):
        snapshot(nn.Sequential(nn.Linear(2, 2, device="meta")))


# ---------------------------------------------------------------- putting it back


def test_restore_is_exact_in_place_and_complete() -> None:
    model = net()
    model.bn.eval()
    model.conv.bias.requires_grad_(False)
    bytes_before, flags_before = memory(model), flags(model)
    before = snapshot(model, values=True)
    objects = {p: (id(t), t.data_ptr()) for p, t in inventory(model).tensors.items()}
    step(model)
    model.train()
    model.fc.eval()
    model.conv.bias.requires_grad_(True)
    model.token.requires_grad_(False)
    with torch.no_grad():
        model.token.fill_(NAN)
        model.small.zero_()
    moved = before.restore(model)
    assert {"token", "small", "bn.training", "fc.training", "conv.bias.requires_grad"} <= set(moved.paths)
    assert memory(model) == bytes_before
    assert flags(model) == flags_before
    assert {p: (id(t), t.data_ptr()) for p, t in inventory(model).tensors.items()} == objects
    assert not before.diff(model)
    assert not before.restore(model)  # a second time there is nothing to do


def test_an_optimizer_keeps_its_parameters() -> None:
    def losses(model: Net, optimizer: torch.optim.Optimizer) -> list[float]:
        found = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = (model.fc.weight - 1).square().sum()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = snapshot(model, values=True)
    first = losses(model, optimizer)
    before.restore(model)
    assert losses(model, optimizer) == first
    # The naive way puts new objects in place, and the optimizer trains the old ones.
    model.load_state_dict({p: r.value for p, r in before.items() if p in model.state_dict()}, assign=True)
    model.requires_grad_(True)
    assert losses(model, optimizer) != first


def test_gradients_and_configuration_are_left_alone() -> None:
    model = net()
    before = snapshot(model, values=True)
    step(model)
    model.bn.eps = 0.5
    gradient = model.fc.weight.grad
    assert gradient is not None
    kept = gradient.clone()
    before.restore(model)
    assert model.fc.weight.grad is gradient
    assert torch.equal(gradient, kept)
    assert before.diff(model).paths == ["bn.eps"]


def test_modes_are_written_one_by_one_and_not_through_train() -> None:
    class Watched(nn.Linear):
        calls = 0

        def train(self, mode: bool = True) -> nn.Module:
            Watched.calls += 1
            return super().train(mode)

    model = nn.Sequential(Watched(1, 1), nn.Dropout())
    model[1].eval()
    before = snapshot(model, values=True)
    model[0].training = False
    model.training = False
    model[1].training = True
    before.restore(model)
    assert [m.training for m in model.modules()] == [True, True, False]
    assert Watched.calls == 0


def test_restore_into_another_model_of_the_same_structure() -> None:
    one, other = net(0), net(1)
    before = snapshot(one, values=True)
    assert before.diff(other)
    before.restore(nn.DataParallel(other))
    assert memory(other) == memory(one)


def shrink(model: Net) -> None:
    model.fc = nn.Linear(2, 3)


def drop_buffer(model: Net) -> None:
    del model.small


def cast(model: Net) -> None:
    model.bn.double()


def buffer_to_parameter(model: Net) -> None:
    del model.mask
    model.mask = nn.Parameter(torch.zeros(2))


def lazy(model: Net) -> None:
    model.conv = nn.LazyConv2d(2, 3)


def untie_kind(model: Net) -> None:
    model.drop = nn.Identity()


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (shrink, "fc.weight, fc.bias"),
        (drop_buffer, "small"),
        (cast, "bn.weight, bn.bias, bn.running_mean, bn.running_var"),
        (buffer_to_parameter, "mask"),
        (lazy, "conv.weight, conv.bias"),
        (untie_kind, "drop.p"),
    ],
)
def test_restore_refuses_a_misfit_and_changes_nothing(spoil, names: str) -> None:
    model = net()
    before = snapshot(model, values=True)
    step(model)
    model.eval()
    spoil(model)
    found, modes = inventory(model), flags(model)
    values = {p: t.detach().clone() for p, t in found.tensors.items() if not nn.parameter.is_lazy(t)}
    with pytest.raises(SnapshotError) as caught:
        before.restore(model)
    assert str(caught.value) == (
        f"restore: the model has no entry of the same kind, dtype and shape for {names}.\n"
        "  fix: restore into a model of the same structure; snapshot.diff(model) says how this one differs"
    )
    assert flags(model) == modes
    now = inventory(model).tensors
    assert all(digest(now[p]) == digest(values[p]) for p in values)


@pytest.mark.parametrize("keep", [False, "buffers"])
def test_restore_refuses_digests_and_changes_nothing(keep) -> None:
    model = net()
    before = snapshot(model, values=keep)
    step(model)
    model.eval()
    bytes_now, flags_now = memory(model), flags(model)
    with pytest.raises(SnapshotError) as caught:
        before.restore(model)
    first = "token, conv.weight, conv.bias, bn.weight, bn.bias, fc.weight, fc.bias, tied.weight"
    if keep == "buffers":
        assert str(caught.value) == (
            f"restore: this snapshot keeps digests only, so {first} cannot be written back.\n"
            "  fix: take it with snapshot(model, values=True)"
        )
    else:
        assert "cannot be written back" in str(caught.value)
    assert (memory(model), flags(model)) == (bytes_now, flags_now)


def test_flags_alone_can_be_restored_without_values() -> None:
    model = nn.Sequential(nn.Dropout(), nn.ReLU())
    before = snapshot(model)
    model.eval()
    before.restore(model)
    assert all(m.training for m in model.modules())


def test_restore_refuses_ties_that_cannot_hold_the_values_and_changes_nothing() -> None:
    apart = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    tied = copy.deepcopy(apart)
    tied[1].weight = tied[0].weight
    before = snapshot(apart, values=True)
    now = memory(tied)
    with pytest.raises(SnapshotError) as caught:
        before.restore(tied)
    assert str(caught.value) == (
        "restore: 0.weight cannot take the kept values: in this model they share memory with tensors whose kept "
        "values differ.\n  fix: restore into a model with the same tied tensors"
    )
    assert memory(tied) == now


# The eleventh is the second name of the tied weight: what is taken back has to go backwards.
@pytest.mark.parametrize("failing", [0, 1, 10])
def test_a_write_that_fails_midway_is_taken_back(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("frostline.state.snapshot")
    copy_, written = module._copy, []

    def fail(target: Tensor, value: Tensor) -> None:
        copy_(target, value)
        written.append(target)
        if len(written) == failing + 1:
            raise MemoryError

    model = net()
    before = snapshot(model, values=True)
    with torch.no_grad():
        for tensor in inventory(model).tensors.values():
            if tensor.is_floating_point():
                tensor.add_(1)
    model.eval()
    now, modes = memory(model), flags(model)
    monkeypatch.setattr(module, "_copy", fail)
    with pytest.raises(MemoryError):
        before.restore(model)
    assert len(written) == 2 * (failing + 1)
    assert memory(model) == now
    assert flags(model) == modes


def test_tensors_made_in_inference_mode_come_back_too() -> None:
    model = nn.Module()
    model.register_buffer("plain", torch.zeros(2))
    with torch.inference_mode():
        model.register_buffer("cache", torch.zeros(2))
        before = snapshot(model, values=True)
        model.cache.add_(1)
    model.plain.add_(1)
    with pytest.raises(RuntimeError, match="inference"):
        model.cache.zero_()  # torch does not let anyone write to it here
    before.restore(model)
    assert not before.diff(model)
    assert not model.plain.is_inference()


def test_views_expanded_quantized_and_conjugated_tensors_come_back() -> None:
    model = nn.Module()
    bank = torch.arange(8.0)
    model.register_buffer("left", bank[:5])
    model.register_buffer("right", bank[3:])
    model.register_buffer("expanded", torch.ones(2, 1).expand(2, 3))
    model.register_buffer("last", torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    model.register_buffer("conjugate", torch.tensor([1 + 2j, 3j]).conj())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        integers = torch.arange(4, dtype=torch.int8)
        make = torch._make_per_tensor_quantized_tensor
        model.register_buffer("quantized", make(integers, 0.1, 1))
        before = snapshot(model, values=True)
        strides = {p: b.stride() for p, b in model.named_buffers()}
        bank.neg_()
        model.expanded.as_strided((2,), (1,)).fill_(7)
        model.last.add_(1)
        model.conjugate.mul_(2j)
        model.quantized.copy_(make(integers.flip(0), 0.3, 2))
        assert model.quantized.q_scale() == 0.3
        diff = before.restore(model)
        assert diff.paths == ["left", "right", "expanded", "last", "conjugate", "quantized"]
        assert not before.diff(model)
        assert (model.quantized.q_scale(), model.quantized.q_zero_point()) == (0.1, 1)
    assert bank.tolist() == list(range(8))
    assert {p: b.stride() for p, b in model.named_buffers()} == strides
    assert model.conjugate.is_conj()


def test_kept_values_are_copies() -> None:
    model = net()
    before = snapshot(model, values=True)
    marks = {p: r.mark for p, r in before.items() if r.value is not None}
    step(model)
    assert {p: digest(r.value) for p, r in before.items() if r.value is not None} == marks
    assert not any(r.value.requires_grad for r in before.values() if r.value is not None)


def test_a_snapshot_does_not_keep_the_model_alive() -> None:
    model = net()
    alive = weakref.ref(model)
    gc.disable()
    try:
        kept = snapshot(model, values=True)
        del model
        assert alive() is None  # at once, without the collector
    finally:
        gc.enable()
    assert kept


# ---------------------------------------------------------------- extra states


class WithExtra(nn.Linear):
    def __init__(self, extra: object) -> None:
        super().__init__(1, 1)
        self.extra = extra

    def get_extra_state(self) -> object:
        return copy.deepcopy(self.extra)

    def set_extra_state(self, state: object) -> None:
        self.extra = state


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"scale": torch.zeros(2)}, {"scale": torch.ones(2)}),
        ([torch.zeros(2, dtype=torch.bfloat16)], [torch.zeros(2, dtype=torch.float16)]),
        (torch.zeros(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)),
        (1, 2),
        (None, 0),
    ],
)
def test_extra_states_are_compared_by_content(before: object, after: object) -> None:
    model = WithExtra(before)
    taken = snapshot(model, values=True)
    assert not taken.diff(model)
    assert not taken.diff(copy.deepcopy(model))
    model.extra = after
    [row] = taken.diff(model).moved
    assert (row.path, row.kind, row.change, row.max_abs) == ("extra_state", "extra", "changed", None)


def test_an_extra_state_that_cannot_be_hashed_is_named() -> None:
    with pytest.raises(CannotDigest, match=r"'0\.extra_state'"):
        snapshot(nn.Sequential(WithExtra([torch.zeros(1, device="meta")])))


# ---------------------------------------------------------------- JSON


def test_json_round_trip() -> None:
    model = net()
    before = snapshot(model, "bn", "fc", values=True)
    text = json.dumps(before.to_json(), allow_nan=False)
    back = Snapshot.from_json(json.loads(text))
    assert back == before  # values are not compared: they are left out
    assert list(back) == list(before)
    assert back.partial
    assert all(r.value is None for r in back.values())
    assert back.to_json() == before.to_json()
    assert back["bn.running_mean"].shape == (2,)
    step(model)
    assert back.diff(model).paths == before.diff(model).paths
    with pytest.raises(SnapshotError, match="digests only"):
        back.restore(model)


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_schema_version_is_refused(version: object) -> None:
    data = snapshot(nn.Linear(1, 1)).to_json() | {"schema_version": version}
    with pytest.raises(SnapshotError) as caught:
        Snapshot.from_json(data)
    assert str(caught.value) == f"this file has schema version {version!r}, this version reads 1"
    with pytest.raises(SnapshotError, match="schema version None"):
        Snapshot.from_json({})


def test_another_algorithm_is_refused() -> None:
    data = snapshot(nn.Linear(1, 1)).to_json() | {"algorithm": "sha256"}
    with pytest.raises(SnapshotError) as caught:
        Snapshot.from_json(data)
    assert str(caught.value) == "snapshot: its digests are sha256, this version computes xxh3-128"


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_snapshots_travel(travel) -> None:
    model = net()
    before = travel(snapshot(model, "bn", values=True))
    assert before.partial
    bytes_before = memory(model)
    with torch.no_grad():
        model.bn.weight.add_(1)
    before.restore(model)
    assert memory(model) == bytes_before


def test_it_prints_in_one_line() -> None:
    assert repr(snapshot(net())) == str(snapshot(net())) == "snapshot of 35 entries, 16 tensors, 0 with values"
    assert str(snapshot(net(), values="buffers")) == "snapshot of 35 entries, 16 tensors, 8 with values"


# ---------------------------------------------------------------- any sequence of writes


WRITES = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["bit", "same", "nan", "negate", "mode", "flag", "permute"])),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(WRITES, st.booleans())
def test_exactly_what_was_touched_is_reported_and_put_back(writes: list[tuple[int, str]], by_json: bool) -> None:
    """The reference: bytes read from memory and flags read from the objects."""
    model = net()
    before_bytes, before_flags = memory(model), flags(model)
    taken = snapshot(model, values=True)
    tensors = [t for t in inventory(model).tensors.values() if t.numel()]
    modules, parameters = list(model.modules()), list(model.parameters())
    for number, write in writes:
        tensor = tensors[number % len(tensors)].detach()
        flat = tensor.reshape(-1)
        if write == "bit" and tensor.dtype is not torch.bool:
            flat.view(torch.uint8)[number % tensor.nbytes] ^= 1 << number % 8
        elif write == "same":
            tensor.copy_(tensor.clone())
        elif write == "nan" and tensor.is_floating_point():
            flat[number % tensor.numel()] = NAN
        elif write == "negate" and tensor.is_floating_point():
            tensor.neg_()
        elif write == "permute":
            tensor.copy_(flat.flip(0).reshape(tensor.shape))
        elif write == "mode":
            module = modules[number % len(modules)]
            module.training = not module.training
        elif write == "flag":
            parameter = parameters[number % len(parameters)]
            parameter.requires_grad_(not parameter.requires_grad)
    after_bytes, after_flags = memory(model), flags(model)
    expected = {p for p in before_bytes if after_bytes[p] != before_bytes[p]}
    expected |= {p for p in before_flags if after_flags[p] != before_flags[p]}
    compared = Snapshot.from_json(json.loads(json.dumps(taken.to_json()))) if by_json else taken
    diff = compared.diff(model)
    assert set(diff.paths) == expected
    assert len(diff.moved) == len(expected)
    assert diff.still == len(taken) - len(expected)
    assert [p for p in taken if p in expected] == diff.paths
    taken.restore(model)
    assert memory(model) == before_bytes
    assert flags(model) == before_flags


def test_parametrized_models_compare_by_their_originals() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(32, 32)))
    model.requires_grad_(False)
    before = snapshot(model)
    model.eval()(torch.ones(1, 32))
    model.train()
    assert not before.diff(model)
    model(torch.ones(1, 32))  # power iteration: parameters are frozen, u and v move
    assert before.diff(model).paths == ["0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v"]


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="NOT TESTED: no gloo here")
def test_sharded_tensors_are_digested_compared_and_restored(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        values = torch.arange(6.0).reshape(2, 3)
        model = nn.Module()
        model.w = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]))
        before = snapshot(model, values=True)
        assert before["w"].mark == digest(values)  # of the part that this process holds, which is all
        assert before["w"].part is None
        assert not before.diff(model)
        copied = nn.Module()
        copied.w = nn.Parameter(distribute_tensor(values, mesh, [Replicate()]))
        assert not before.diff(copied)
        with torch.no_grad():
            model.w.mul_(2)
        [row] = before.diff(model).moved
        assert (row.path, row.max_abs, row.mean_abs) == ("w", 5.0, 2.5)
        before.restore(model)
        assert not before.diff(model)
    finally:
        dist.destroy_process_group()


@pytest.mark.cuda
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO CUDA DEVICE HERE: snapshots across devices are not tested"
)
def test_a_snapshot_taken_on_one_device_compares_on_another() -> None:
    model = net()
    before = snapshot(model, values=True)
    model.cuda()
    assert not before.diff(model)
    with torch.no_grad():
        model.bn.weight.add_(0.5)
    [row] = before.diff(model).moved
    assert (row.path, row.max_abs, row.mean_abs) == ("bn.weight", 0.5, 0.5)
    before.restore(model)
    assert not before.diff(model)
    assert model.bn.weight.is_cuda
    assert not snapshot(model, values=True).diff(model.cpu())
