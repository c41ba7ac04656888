"""Many heads side by side: each is equal to the bit to the one that is trained alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import CannotFreeze, DataError, ModelError
from frostline.fast.head_run import HeadEpoch
from frostline.fast.head_task import HeadTask, sweep
from frostline.fast.heads import train_heads
from frostline.fast.heads_result import HeadsResult
from frostline.heads.initial import new_head
from frostline.runs.seeds import order_of
from frostline.state.digest import digest_all
from frostline.state.inventory import inventory


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, V = drawn(61, 16), drawn(40, 16, seed=1)
Y, W = (X[:, :3].argmax(1), V[:, :3].argmax(1))


class Noisy(nn.Module):
    """Draws at random, keeps statistics, and writes to the batch that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.ReLU(inplace=True), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


def noisy() -> Noisy:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return Noisy()


def tasks() -> dict[str, HeadTask]:
    plain = HeadTask(Y, W, out_features=3, epochs=5)
    few = torch.arange(0, 61, 3)
    return {
        "plain": plain,
        "other_seed": replace(plain, seed=7),
        "small_batches": replace(plain, batch_size=5, lr=0.01),
        "stops": replace(plain, lr=0.5, epochs=30, patience=1),
        "blows_up": replace(plain, lr=1e38),
        "noisy": replace(plain, out_features=None, head=noisy()),
        "part": HeadTask(Y[few], W[:9], out_features=3, samples=few, val_samples=range(9)),
        "figures": HeadTask(X[:, 0], V[:, 0], head=nn.Sequential(nn.Linear(16, 1), nn.Flatten(0)), loss=mean_square),
        "no_validation": HeadTask(Y, out_features=3, epochs=2),
    }


def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs, targets)


def bits(module: nn.Module) -> dict[str, str]:
    return digest_all(inventory(module).tensors)


@pytest.fixture(scope="module")
def together() -> tuple[dict[str, HeadTask], HeadsResult]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given = tasks()
    result = train_heads(X, given, val=V)
    torch.set_num_threads(threads)
    return given, result


# Equal to the bit


@pytest.mark.parametrize("name", list(tasks()))
def test_each_head_is_equal_to_the_bit_to_the_one_trained_alone(together: Any, name: str):
    given, result = together
    alone = train_heads(X, {name: given[name]}, val=V)
    assert bits(alone.heads[name]) == bits(result.heads[name])
    mine = next(row for row in result.rows if row.name == name)
    assert replace(mine, seconds=0.0) == replace(alone.rows[0], seconds=0.0)


def test_the_order_of_the_tasks_does_not_count(together: Any):
    given, result = together
    back = train_heads(X, dict(reversed(given.items())), val=V)
    assert {name: bits(head) for name, head in back.heads.items()} == {
        name: bits(head) for name, head in result.heads.items()
    }


def test_heads_that_share_the_global_generator_would_not_be_equal():
    """The failing twin: two heads with dropout in one loop, as one writes it."""

    def loop(count: int) -> dict[str, str]:
        torch.default_generator.manual_seed(0)
        heads = [nn.Sequential(nn.Dropout(), nn.Linear(16, 3)) for _ in range(2)]
        heads = heads[:count]
        rates = [torch.optim.AdamW(head.parameters(), lr=0.01) for head in heads]
        for _ in range(2):
            for head, optimizer in zip(heads, rates, strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(X), Y).backward()
                optimizer.step()
        return bits(heads[0])

    with torch.random.fork_rng(devices=[]):
        assert loop(1) != loop(2)


def test_a_plain_loop_of_torch_gives_the_same_head(together: Any):
    _, result = together
    head = new_head(nn.Linear(16, 3), 3, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    for epoch in range(1, 6):
        for chosen in order_of(61, 0, epoch).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(X[chosen]), Y[chosen]).backward()
            optimizer.step()
    assert bits(head) == bits(result.heads["plain"])


def test_nothing_that_was_given_is_changed(together: Any):
    trunk = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    head = nn.Linear(4, 3)
    before, state = bits(nn.ModuleList([trunk, head])), torch.random.get_rng_state()
    result = train_heads(trunk, {"a": HeadTask(Y, W, head=head)}, inputs=X, val_inputs=V)
    assert bits(nn.ModuleList([trunk, head])) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in trunk.modules())
    assert result.heads["a"] is not head
    assert not result.heads["a"].training
    assert result.feature_seconds > 0


# Early stopping and divergence


def test_patience_gives_back_the_best_state(together: Any):
    given, result = together
    row = next(row for row in result.rows if row.name == "stops")
    assert row.stopped_early
    assert row.epochs == row.best_epoch + 1
    assert row.epoch == row.best_epoch
    told = [each.accuracy for each in result.epochs if each.head == "stops"]
    assert row.accuracy == max(told) == told[row.best_epoch - 1]
    until_best = train_heads(X, {"stops": replace(given["stops"], patience=None, epochs=row.best_epoch)}, val=V)
    assert bits(until_best.heads["stops"]) == bits(result.heads["stops"])


def test_patience_by_loss_where_targets_are_no_classes():
    task = HeadTask(X[:, 0], V[:, 0], head=nn.Sequential(nn.Linear(16, 1), nn.Flatten(0)), loss=mean_square, lr=2.0)
    result = train_heads(X, {"a": replace(task, patience=2, epochs=40)}, val=V)
    (row,) = result.rows
    losses = [each.val_loss for each in result.epochs]
    assert row.accuracy is None
    assert row.val_loss == min(losses)
    assert row.stopped_early


def test_a_head_that_diverges_is_reported_and_the_others_go_on(together: Any):
    _, result = together
    assert result.diverged == ("blows_up",)
    row = next(row for row in result.rows if row.name == "blows_up")
    assert row.diverged.startswith("the ")
    assert "nan or infinite" in row.diverged or "the loss became" in row.diverged
    assert (row.epoch, row.accuracy) == (0, None)
    assert next(row for row in result.rows if row.name == "plain").epochs == 5
    assert f"'blows_up' diverged: {row.diverged}" in str(result)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["rows"][4]["diverged"] == row.diverged


def test_a_head_whose_loss_is_not_finite_is_left_as_the_step_found_it():
    bad = X.clone()
    bad[order_of(61, 0, 1)[40]] = float("inf")
    result = train_heads(bad, {"a": HeadTask(Y, out_features=3)})
    assert result.rows[0].diverged == "the loss became nan in epoch 1, step 2"
    assert all(bool(p.isfinite().all()) for p in result.heads["a"].parameters())


# The proof


def test_the_proof_names_every_head_and_the_trunk(together: Any):
    _, result = together
    assert result.isolation.isolated
    assert result.isolation.trunk is None
    assert [head.name for head in result.isolation.heads] == list(tasks())
    trunk = nn.Linear(16, 4)
    both = train_heads(trunk, {"a": HeadTask(Y, out_features=3)}, inputs=X)
    assert both.isolation.trunk is not None
    assert not both.isolation.trunk
    assert "trunk: 5 entries equal to the bit" in str(both.isolation)


class Spoiler(nn.Module):
    """Writes to what is not its own whenever it runs in train mode."""

    def __init__(self, victims: list[nn.Module]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)
        self.__dict__["victims"] = victims

    def __deepcopy__(self, memo: Any) -> Spoiler:
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            for victim in self.__dict__["victims"]:
                with torch.no_grad():
                    next(victim.parameters()).add_(1.0)
        return self.linear(x)


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Uncopied:
        return self


@pytest.mark.parametrize("order", [["spoiler", "victim"], ["victim", "spoiler"]])
def test_a_head_that_moves_another_one_is_found(order: list[str]):
    victim = Uncopied(16, 3)
    heads = {"victim": HeadTask(Y, head=victim), "spoiler": HeadTask(Y, head=Spoiler([victim]), batch_size=7)}
    report = train_heads(X, {name: heads[name] for name in order}).isolation
    assert not report.isolated
    moved = {head.name for head in report.heads if not head.alone}
    assert moved == {"victim"}
    assert "moved by others: victim" in str(report)
    assert report.to_json()["isolated"] is False


def test_a_head_that_moves_one_that_has_ended_is_found():
    victim = Uncopied(16, 3)
    spoiler = Spoiler([])
    heads = {"victim": HeadTask(Y, head=victim, epochs=1), "spoiler": HeadTask(Y, head=spoiler, epochs=3)}

    def later(row: HeadEpoch) -> None:
        if row.head == "spoiler" and row.epoch == 1:
            spoiler.__dict__["victims"].append(victim)

    report = train_heads(X, heads, after_epoch=later).isolation
    (of_victim, _) = report.heads
    assert (of_victim.still_in_first_round, of_victim.still_after_its_end) == (True, False)


def test_a_head_that_moves_the_trunk_is_found():
    trunk = nn.Linear(16, 16)
    report = train_heads(trunk, {"a": HeadTask(Y, head=Spoiler([trunk]))}, inputs=X).isolation
    assert report.trunk is not None
    assert report.trunk.paths == ["weight"]
    assert not report.isolated


def test_heads_that_share_memory_are_refused():
    shared = Uncopied(16, 3)
    with pytest.raises(CannotFreeze, match=r"'a' shares memory with heads\.b\.weight, heads\.b\.bias"):
        train_heads(X, {"a": HeadTask(Y, head=shared), "b": HeadTask(Y, head=shared)})
    trunk = nn.Sequential(Uncopied(16, 16))
    with pytest.raises(CannotFreeze, match=r"shares memory with trunk\.0\.weight"):
        train_heads(trunk, {"a": HeadTask(Y, head=trunk[0])}, inputs=X)


def test_one_module_for_many_tasks_is_copied_for_each():
    head = nn.Linear(16, 3)
    result = train_heads(X, sweep(HeadTask(Y, head=head), lr=(1e-3, 1e-2)))
    assert result.isolation.isolated
    assert len({id(each) for each in result.heads.values()} | {id(head)}) == 3


# Sources


class Views:
    """A source with two views that remembers what it was asked for."""

    views = 2

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 61

    def batch(self, indices: Any, view: int = 0) -> tuple[tuple[Tensor, ...], None]:
        self.asked.append((len(indices), view))
        return (X[indices] + view,), None


def test_a_source_is_asked_once_for_heads_that_are_fed_alike():
    source = Views()
    task = HeadTask(Y, Y[:20], out_features=3, epochs=3, val_samples=range(20))
    train_heads(source, {"one": task, "two": replace(task, lr=0.1), "three": replace(task, weight_decay=0.0)})
    assert source.asked == [(2, 0)] + [each for view in (0, 1, 0) for each in [(32, view), (29, view), (20, 0)]]


def test_features_of_several_tensors_and_of_maps():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16 + 2, 3)

        def forward(self, x: Tensor, maps: Tensor) -> Tensor:
            return self.linear(torch.cat([x, maps.mean((2, 3))], 1))

    maps = drawn(61, 2, 3, 3)
    result = train_heads((X, maps), {"a": HeadTask(Y, head=Both())})
    assert result.rows[0].epochs == 10
    with pytest.raises(ModelError, match=r"takes one vector a sample, and the features are of shape \(2, 3, 3\)"):
        train_heads(maps, {"a": HeadTask(Y, out_features=3)})


def test_narrow_features_are_widened():
    half = X.half()
    wide = train_heads(half.float(), {"a": HeadTask(Y, out_features=3)})
    narrow = train_heads(half, {"a": HeadTask(Y, out_features=3)})
    assert bits(wide.heads["a"]) == bits(narrow.heads["a"])


def test_a_last_batch_of_one_sample_is_left_out():
    head = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3))
    result = train_heads(X, {"a": HeadTask(Y, head=head, batch_size=60, epochs=1)})
    assert int(result.heads["a"][0].num_batches_tracked) == 1


# What is told


def test_the_result_is_a_table(together: Any):
    _, result = together
    lines = str(result).splitlines()
    assert lines[0].split() == [
        "head",
        "accuracy",
        "loss",
        "val",
        "loss",
        "best",
        "epoch",
        "epochs",
        "ended",
        "seconds",
    ]
    assert "stopped early" in str(result)
    assert lines[-1] == "9 heads, each moved by itself alone; the features came without a trunk"
    assert "<table>" in result._repr_html_()
    assert "<table>" in result.isolation._repr_html_()
    assert result.best is not None
    assert result.best.accuracy == max(row.accuracy for row in result.rows if row.accuracy is not None)


def test_every_epoch_is_told():
    told: list[HeadEpoch] = []
    task = HeadTask(Y, W, out_features=3, epochs=2)
    result = train_heads(X, {"a": task, "b": replace(task, epochs=1)}, val=V, after_epoch=told.append)
    assert [(row.head, row.epoch, row.epochs) for row in told] == [("a", 1, 2), ("b", 1, 1), ("a", 2, 2)]
    assert tuple(told) == result.epochs
    row = result.rows[0]
    assert row.seconds == pytest.approx(sum(each.seconds for each in told if each.head == "a"))


# What is refused


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"tasks": {}}, ModelError, "there is no head to train"),
        ({"tasks": {"a.b": HeadTask(Y, out_features=3)}}, ModelError, "cannot be named 'a.b'"),
        ({"tasks": {"keys": HeadTask(Y, out_features=3)}}, ModelError, "cannot be named 'keys'"),
        ({"tasks": {"a": HeadTask(Y[:5], out_features=3)}}, DataError, "has 5 targets for features of 61 samples"),
        ({"tasks": {"a": HeadTask(Y, W, out_features=3)}}, DataError, "nothing says of which features"),
        (
            {"tasks": {"a": HeadTask(Y, W[:3], out_features=3)}, "val": V},
            DataError,
            "has 3 val_targets for features of 40 samples\n  fix: one for each sample, or val_samples=",
        ),
        (
            {"tasks": {"a": HeadTask(Y[:2], out_features=3, samples=[0, 61])}},
            DataError,
            "of samples that are not there: 61",
        ),
        ({"tasks": {"a": HeadTask(Y, out_features=2)}}, DataError, "among its targets is 2\n  fix: .*out_features=3"),
        ({"tasks": {"a": HeadTask(Y - 1, out_features=3)}}, DataError, "among its targets is -1"),
        ({"tasks": {"a": HeadTask(Y, head=nn.Linear(5, 3))}}, ModelError, r"does not take features of shape \(2, 16\)"),
        ({"tasks": {"a": HeadTask(Y, head=nn.Flatten())}}, ModelError, "nothing that trains"),
        ({"tasks": {"a": HeadTask(Y, head=nn.LSTM(16, 3))}}, ModelError, "gives a tuple"),
        ({"tasks": {"a": HeadTask(Y, out_features=3)}, "inputs": X}, DataError, "inputs are for a trunk"),
    ],
)
def test_what_cannot_be_trained_is_refused(given: dict[str, Any], error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        train_heads(X, **given)


def test_a_trunk_without_inputs_is_refused():
    with pytest.raises(DataError, match="nothing to run it on"):
        train_heads(nn.Identity(), {"a": HeadTask(Y, out_features=3)})
