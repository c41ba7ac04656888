"""One phase of training: its order, its seeds, what it goes on from, and when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, TensorDataset

from frostline.errors import DataError, ModelError, TrainingDiverged
from frostline.finetune import FinetuneConfig
from frostline.finetune.loop import EpochSampler, fit, make_accelerator
from frostline.finetune.metrics import EpochRow
from frostline.finetune.problem import Phase
from frostline.runs.seeds import mix_seed
from frostline.runs.training_state import pack, unpack_model
from frostline.tasks import TaskModel

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = FinetuneConfig(batch_size=8, workers=0, device="cpu")


class Watched(Dataset[Any]):
    """Remembers what it was asked for."""

    def __init__(self, size: int, sick: float | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size, 4, generator=generator)
        if sick is not None:
            self.inputs[-1, 0] = sick
        self.asked: list[int] = []
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        return self.inputs[index], int(self.inputs[index, 0] > 0)


def small_model() -> TaskModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        return TaskModel(trunk, {"a": nn.Linear(8, 2), "b": nn.Linear(8, 2)})


def phase_of(train: Dataset[Any], epochs: int = 3, lr: float = 0.01, val: Dataset[Any] | None = None) -> Phase:
    return Phase("a", epochs, lr, (), train, val or Watched(10))


def run(model: TaskModel, phase: Phase, recorder: Any, config: FinetuneConfig = CONFIG, **options: Any) -> None:
    for parameter in model.heads["b"].parameters():
        parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        fit(make_accelerator(config), model, phase, config, recorder, name="a", number=0, **options)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


# Order and seeds


def test_the_sampler_gives_every_index_once_in_an_order_of_seed_and_epoch():
    sampler = EpochSampler(50, seed=3)
    orders = []
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(50))
    assert len(sampler) == 50
    assert orders[0] != orders[1] != orders[2] != orders[0]
    other = EpochSampler(50, seed=3)
    other.set_epoch(2)
    torch.manual_seed(9)  # the global state has no say
    assert list(other) == orders[1]
    assert list(EpochSampler(50, seed=4)) != list(EpochSampler(50, seed=3))
    other.set_epoch(2)
    assert list(other) == orders[1]


def test_seeds_of_neighbours_differ_and_fit_torch():
    seeds = [mix_seed(*parts) for parts in [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**64 - 1, 2**64 - 1, 7)]]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_every_epoch_sees_all_samples_in_another_order_and_the_dataset_is_told(recorder: Any):
    data = Watched(20)
    run(small_model(), phase_of(data), recorder)
    epochs = [data.asked[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(dict.fromkeys(data.epochs)) == [1, 2, 3]


def test_the_same_seed_gives_the_same_tensors_and_another_does_not(recorder: Any):
    models = [small_model() for _ in range(3)]
    torch.manual_seed(1)
    run(models[0], phase_of(Watched(20)), recorder)
    torch.manual_seed(2)
    run(models[1], phase_of(Watched(20)), recorder)
    run(models[2], phase_of(Watched(20)), recorder, replace(CONFIG, seed=1))
    assert bits(models[0]) == bits(models[1])
    assert bits(models[0]) != bits(models[2])


def test_what_does_not_require_gradients_is_no_part_of_the_optimizer(recorder: Any):
    model, seen = small_model(), []
    run(model, phase_of(Watched(20), epochs=1), recorder, after_epoch=lambda _, optimizer, __: seen.append(optimizer))
    assert isinstance(seen[0], torch.optim.AdamW)
    owned = {id(p) for group in seen[0].param_groups for p in group["params"]}
    assert owned == {id(p) for name, p in model.named_parameters() if not name.startswith("heads.b")}


# Rows


def test_rows_say_what_was_trained(recorder: Any):
    model, given = small_model(), []
    val = Watched(10)
    run(model, phase_of(Watched(20), val=val), recorder, after_epoch=lambda row, *_: given.append(row))
    assert recorder.begun == [("a", 3, 0)]
    assert given == recorder.rows
    assert [(row.phase, row.epoch, row.epochs) for row in given] == [("a", epoch, 3) for epoch in (1, 2, 3)]
    assert len(recorder.losses) == 3 * 3  # 20 samples in batches of 8
    # A mean over samples: the last batch has half as many as the others.
    one, two, three = recorder.losses[:3]
    assert given[0].loss == pytest.approx((8 * one + 8 * two + 4 * three) / 20)
    model.eval()
    with torch.no_grad():
        right = model(val.inputs, "a").argmax(-1) == (val.inputs[:, 0] > 0).long()
    assert given[-1].accuracy == float(right.double().mean())
    assert all(row.seconds > 0 for row in given)


# Going on


def test_going_on_after_an_epoch_is_as_if_nothing_had_happened(recorder: Any):
    whole = small_model()
    kept: dict[int, Any] = {}

    def keep(row: EpochRow, optimizer: Optimizer, _: str) -> None:
        tensors, metadata = pack(whole, optimizer)
        kept[row.epoch] = ({name: tensor.clone() for name, tensor in tensors.items()}, metadata)

    run(whole, phase_of(Watched(20)), recorder, after_epoch=keep)
    for done, packed in kept.items():
        fresh, data = small_model(), Watched(20)
        unpack_model(fresh, packed[0])
        run(fresh, phase_of(data), recorder, done=done, packed=packed)
        assert bits(fresh) == bits(whole)
        assert list(dict.fromkeys(data.epochs)) == list(range(done + 1, 4))
    assert recorder.begun[-1] == ("a", 3, 3)


# When it stops


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_it_does_harm(value: float, recorder: Any):
    model = small_model()
    seen: list[Any] = []
    with pytest.raises(TrainingDiverged, match="the loss became nan in phase 'a', epoch 1, step") as caught:
        run(model, phase_of(Watched(20, sick=value)), recorder, after_epoch=lambda *row: seen.append(row))
    assert "fix: a smaller learning rate than --lr 0.002" in str(caught.value)
    assert seen == []
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_last_step_that_breaks_the_weights_is_found_before_anything_is_kept(recorder: Any):
    """Its loss was finite; a checkpoint of it would be no good one, and the run could never go on from it."""
    seen: list[Any] = []
    config = replace(CONFIG, batch_size=100, lr=1e30)
    with pytest.raises(TrainingDiverged, match=r"logits became nan or infinite .* in phase 'a', after epoch 1"):
        run(small_model(), phase_of(Watched(20), lr=1e30), recorder, config, after_epoch=lambda *row: seen.append(row))
    assert seen == recorder.rows == []
    assert len(recorder.losses) == 1


def test_a_last_batch_of_one_sample_is_left_out_because_batch_norm_has_no_variance_of_it(recorder: Any):
    data = Watched(17)
    run(small_model(), phase_of(data, epochs=1), recorder)
    assert len(recorder.losses) == 2
    run(small_model(), phase_of(TensorDataset(data.inputs[:9], torch.zeros(9).long()), epochs=1), recorder)


def test_fewer_samples_than_a_batch_are_one_batch(recorder: Any):
    run(small_model(), phase_of(Watched(5), epochs=1), recorder)
    assert len(recorder.losses) == 1


def test_one_sample_is_refused(recorder: Any):
    with pytest.raises(DataError, match="only 1 sample to train on"):
        run(small_model(), phase_of(Watched(1)), recorder)


# Devices


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its settings for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("device", ["nonsense", "cuda:x", "cuda:-1", "cuda:99", "cuda:", "cpu:0", "auto:1", "", "CPU"])
def test_a_device_that_is_not_there_is_refused(device: str):
    with pytest.raises(ModelError, match=f"--device {device}: (not available here|there is no device)") as caught:
        make_accelerator(replace(CONFIG, device=device))
    assert "fix: one of auto, cpu" in str(caught.value)


@pytest.mark.usefixtures("fresh_accelerator")
def test_mixed_precision_of_the_environment_is_left_out(monkeypatch: pytest.MonkeyPatch):
    """accelerate would wrap the forward pass: logits after in another precision than before, and no proof."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator(CONFIG).mixed_precision == "no"
