"""The cache follows the boundary or is dropped, and nothing of the training depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl
from frostline.fast import Converged
from frostline.fast.moving_boundary import MovingBoundary
from frostline.optim.unfreeze import Epoch, Stage, Unfreeze
from frostline.optim.unfreezing import Unfreezing
from frostline.state.snapshot import snapshot

IMAGES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(IMAGES, (IMAGES.mean((1, 2, 3)) > 0).long())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(4, 2),
    ).train()


def train(folder: Path | None, epochs: int = 6) -> tuple[dict[str, Any], list[str]]:
    """Six epochs under a schedule; with a folder at a boundary that moves, without one as a whole."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    lines: list[str] = []
    schedule = Unfreeze((Stage(("1",), Epoch(2)), Stage(("0",), Epoch(4))))
    with Unfreezing(schedule, model, optimizer) as unfreezing:
        boundary = None if folder is None else MovingBoundary(model, DATA, folder, rows=4, say=lines.append)
        if boundary is not None:
            boundary.settle(epochs=2)
        for epoch in range(1, epochs + 1):
            generator = torch.Generator().manual_seed(epoch)
            samples = DATA if boundary is None else boundary.samples(epoch)
            for inputs, labels in DataLoader(samples, batch_size=4, shuffle=True, generator=generator):
                optimizer.zero_grad()
                outputs: Tensor = model(inputs) if boundary is None else boundary.outputs(inputs)
                nn.functional.cross_entropy(outputs, labels).backward()
                optimizer.step()
            if unfreezing.epoch_end() and boundary is not None:
                boundary.settle(epochs=2)
    return {path: record.mark for path, record in snapshot(model).items()}, lines


def test_a_schedule_moves_it_and_the_result_is_that_of_the_plain_loop(tmp_path) -> None:
    ours, lines = train(tmp_path)
    plain, _ = train(None)
    assert ours == plain
    estimates = [line for line in lines if line.startswith("features of 12 samples: ")]
    assert len(estimates) == 2
    assert "all to compute" in estimates[0]
    assert [line.partition(",")[0] for line in lines if line not in estimates] == [
        "boundary at 2: 12 x 1 features",
        "boundary moved from 2 to 0: 12 x 1 features",
        "0 is given up: nothing in front is frozen any more",
    ]
    # What was left is removed.
    assert list(tmp_path.iterdir()) == []


def test_what_has_converged_moves_it_to_the_back(tmp_path) -> None:
    model = net()
    front = fl.freeze(model, "0")
    boundary = MovingBoundary(model, DATA, tmp_path, rows=4)
    assert boundary.settle(epochs=5).startswith("boundary at 0: 12 x 1 features, ")
    back = fl.freeze(model, "1", "2")
    assert boundary.settle(epochs=5).startswith("boundary moved from 0 to 2: ")
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert boundary.settle(epochs=5) == "boundary stays at 2"
    back.thaw()
    assert boundary.settle(epochs=5).startswith("boundary moved from 2 to 0: ")
    front.thaw()
    assert boundary.settle(epochs=5) == "0 is given up: nothing in front is frozen any more"
    assert (boundary.prefix, boundary.cache) == (None, None)
    inputs, _ = boundary.samples(1)[0]
    assert boundary.outputs(inputs[None].expand(2, -1, -1, -1)).shape == (2, 2)


def test_a_watcher_moves_it_by_itself(tmp_path) -> None:
    model = net()
    slow, rest = list(model[0].parameters()), [*model[1].parameters(), *model[3].parameters()]
    optimizer = torch.optim.SGD([{"params": slow, "lr": 1e-9}, {"params": rest, "lr": 0.1}])
    boundary = MovingBoundary(model, DATA, tmp_path, rows=4)
    lines: list[str] = []
    moved = lambda _move: lines.append(boundary.settle(epochs=9))  # noqa: E731
    with Converged(model, optimizer, head="3", act=True, on_freeze=moved) as watcher:
        for epoch in range(1, 5):
            for inputs, labels in DataLoader(boundary.samples(epoch), batch_size=4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(boundary.outputs(inputs), labels).backward()
                optimizer.step()
            watcher.epoch_end()
        assert lines[0].startswith("boundary at 0: 12 x 1 features, ")
        assert boundary.cache is not None
        watcher.take_back()
    assert lines[-1] == "0 is given up: nothing in front is frozen any more"


def test_it_is_dropped_where_it_is_not_worth_it_or_too_large(tmp_path) -> None:
    model = net()
    fl.freeze(model, "0")
    seldom = MovingBoundary(model, DATA, tmp_path, rows=4)
    line = seldom.settle(epochs=1)
    assert line == "boundary at 0: no cache, because 12 x 1 features would be used 1.0 times each"
    large = MovingBoundary(model, DATA, tmp_path, rows=4, limit=100)
    assert "no cache, because 12 x 1 features would take " in large.settle(epochs=9)
    assert large.settle(epochs=9) == "boundary stays at 0"
    # The prefix still runs without a graph, with the same bits.
    assert large.prefix is not None
    inputs, _ = next(iter(DataLoader(large.samples(1), batch_size=4)))
    assert torch.equal(large.outputs(inputs), large.prefix.rest(large.prefix(inputs)))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_were_loaded_meanwhile_are_another_boundary(tmp_path) -> None:
    model = net()
    hold = fl.freeze(model, "0")
    boundary = MovingBoundary(model, DATA, tmp_path, rows=4)
    boundary.settle(epochs=5)
    hold.thaw()
    with torch.no_grad():
        model[0][0].weight.mul_(2)
    fl.freeze(model, "0")
    assert boundary.settle(epochs=5).startswith("boundary moved from 0 to 0: 12 x 1 features")


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
def test_maps_may_be_kept_in_less_space(dtype, tmp_path) -> None:
    model = net()
    fl.freeze(model, "0")
    wide, narrow = (MovingBoundary(model, DATA, tmp_path / str(d), rows=4, dtype=d) for d in (None, dtype))
    wide.settle(epochs=5)
    narrow.settle(epochs=5)
    assert wide.cache is not None
    assert narrow.cache is not None
    assert narrow.cache.nbytes < wide.cache.nbytes
    (exact,), (near,) = (b.cache.batch(range(12))[0] for b in (wide, narrow))
    assert near.dtype == torch.float32
    assert 0 < (exact - near).abs().max() < 0.02 * exact.abs().max()
