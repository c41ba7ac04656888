"""What a frozen prefix spares, and that nothing of the result depends on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from frostline.errors import CacheError, CacheMismatch, FastError, ShortcutDiffers, StorageFull
from frostline.fast import FeatureCache, Prefix
from frostline.finetune import FinetuneConfig
from frostline.finetune.loop import fit, make_accelerator
from frostline.finetune.problem import Phase
from frostline.finetune.shortcut import MOST_VIEWS, Shortcut, shortcut_for, whole_model
from frostline.state.digest import digest
from frostline.state.snapshot import snapshot
from frostline.tasks import TaskModel, train_task

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = FinetuneConfig(batch_size=8, workers=0, device="cpu", seed=3)


class Augmented(Dataset[Any]):
    """Images whose augmentation depends on (epoch, index), as those of the main job; counts what is read."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(size, 3, 6, 6, generator=generator)
        self.labels = (self.images.mean((1, 2, 3)) > 0).long()
        self.epoch, self.read = 1, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        return self.images[index] + torch.randn(3, 6, 6, generator=generator) / 4, int(self.labels[index])


class Plain(TensorDataset):
    """Images for validation."""

    def __init__(self, size: int) -> None:
        of = Augmented(size)
        super().__init__(of.images, of.labels)


def model_of() -> TaskModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        front = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))
        back = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        trunk = nn.Sequential()
        for name, part in (("front", front), ("back", back), ("pool", pool)):
            trunk.add_module(name, part)
        # A head that draws random numbers: they have to be the same ones.
        head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 2))
        return TaskModel(trunk, {"a": head, "b": nn.Linear(8, 3)})


class Trained:
    """What a run of one phase came to."""

    def __init__(self, config: FinetuneConfig, held: tuple[str, ...], folder: Path, recorder: Any, epochs: int = 3):
        self.model, self.train = model_of(), Augmented(21)
        phase = Phase("a", epochs, 0.05, held, self.train, Plain(10), "head")
        accelerator = make_accelerator(config)
        with torch.random.fork_rng(devices=[]), train_task(self.model, "a", trunk=held):
            self.shortcut = shortcut_for(self.model, phase, config, accelerator, folder, recorder)
            torch.manual_seed(0)
            fit(accelerator, self.model, phase, config, recorder, name="a", number=0, shortcut=self.shortcut)
        self.state = {path: record.mark for path, record in snapshot(self.model).items()}
        self.rows = [(row.loss, row.accuracy) for row in recorder.rows]
        recorder.rows.clear()


@pytest.mark.parametrize("held", [("*",), ("front",)])
@pytest.mark.parametrize("views", [None, 2])
def test_with_and_without_a_cache_the_result_is_the_same_to_the_bit(held, views, tmp_path, recorder) -> None:
    config = replace(CONFIG, views=views)
    cached = Trained(config, held, tmp_path, recorder)
    alone = Trained(replace(config, use_cache=False), held, tmp_path, recorder)
    assert (cached.shortcut.cached, alone.shortcut.cached) == (True, False)
    assert alone.shortcut.prefix is not None
    assert cached.rows == alone.rows
    assert cached.state == alone.state
    # The twin: another draw of the augmentation is another result.
    other = Trained(replace(config, use_cache=False, views=1), held, tmp_path, recorder)
    assert other.state != alone.state


def test_without_a_prefix_the_result_is_the_same_where_batches_are_full(tmp_path, recorder) -> None:
    """What the model computes as a whole: the last batch of 21 has 5 samples, which kernels may treat otherwise."""
    alone = Trained(replace(CONFIG, use_cache=False, batch_size=7), ("*",), tmp_path, recorder)
    model, train = model_of(), Augmented(21)
    phase = Phase("a", 3, 0.05, ("*",), train, Plain(7), "head")
    config = replace(CONFIG, batch_size=7)
    with torch.random.fork_rng(devices=[]), train_task(model, "a"):
        torch.manual_seed(0)
        fit(make_accelerator(config), model, phase, config, recorder, name="a", number=0)
    assert {p: r.mark for p, r in snapshot(model).items()} == alone.state


def test_each_sample_is_read_once_a_view(tmp_path, recorder) -> None:
    config = replace(CONFIG, views=2)
    cached = Trained(config, ("*",), tmp_path, recorder, epochs=6)
    # A few more to see what kind of dataset it is.
    assert cached.train.read < 2 * 21 + 20
    alone = Trained(replace(config, use_cache=False), ("*",), tmp_path, recorder, epochs=6)
    assert alone.train.read == 6 * 21
    assert recorder.computed[-1] == (2 * 21 + 10, 2 * 21 + 10)


def test_it_says_in_a_line_what_is_kept_and_what_it_brings(tmp_path, recorder) -> None:
    Trained(replace(CONFIG, views=1), ("*",), tmp_path, recorder, epochs=4)
    (line,) = [line for line in recorder.said if "features" in line]
    assert line.startswith(
        "21 x 1 + 10 features of the frozen prefix are kept until the run is done (--cache-folder keeps them), "
    )
    assert line.endswith(f"in {tmp_path / 'features'}: 31 passes through it instead of 124 (--no-cache turns it off)")


def test_where_a_part_of_the_trunk_trains_no_more_is_promised_than_holds(tmp_path, recorder) -> None:
    Trained(replace(CONFIG, views=1), ("front",), tmp_path, recorder, epochs=4)
    (line,) = [line for line in recorder.said if "features" in line]
    assert line.endswith(": 31 passes through it instead of 124 (--no-cache turns it off)")


def test_features_of_a_run_are_removed_and_those_of_a_folder_are_kept(tmp_path, recorder) -> None:
    own = Trained(replace(CONFIG, views=1), ("*",), tmp_path, recorder)
    assert (tmp_path / "features").is_dir()
    own.shortcut.discard()
    assert not (tmp_path / "features").exists()
    config = replace(CONFIG, views=1, cache=str(tmp_path / "kept"))
    first = Trained(config, ("*",), tmp_path, recorder)
    first.shortcut.discard()
    again = Trained(config, ("*",), tmp_path, recorder)
    assert " of the frozen prefix are kept, " in recorder.said[-1]
    assert "all there from a run before" in recorder.said[-1]
    assert again.state == first.state
    assert again.train.read < 21


def test_a_folder_of_another_model_is_refused_by_name_and_rebuilt_when_asked(tmp_path, recorder) -> None:
    config = replace(CONFIG, views=1, cache=str(tmp_path / "kept"))
    Trained(config, ("*",), tmp_path, recorder)
    with pytest.raises(CacheMismatch, match="boundary"):
        Trained(config, ("front",), tmp_path, recorder)
    rebuilt = Trained(replace(config, rebuild_cache=True), ("front",), tmp_path, recorder)
    assert rebuilt.shortcut.cached


def test_what_would_be_used_once_is_not_kept(tmp_path, recorder) -> None:
    once = Trained(CONFIG, ("*",), tmp_path, recorder, epochs=1)
    assert (once.shortcut.cached, once.shortcut.prefix is None) == (False, False)
    assert not (tmp_path / "features").exists()


def test_what_does_not_fit_is_not_kept_and_said(tmp_path, recorder, monkeypatch) -> None:
    monkeypatch.setattr("frostline.fast.cache_reports.shutil.disk_usage", lambda _: type("U", (), {"free": 1000})())
    alone = Trained(replace(CONFIG, views=1), ("*",), tmp_path, recorder)
    assert not alone.shortcut.cached
    assert "are not kept: they would take" in recorder.said[-1]


@pytest.mark.parametrize(
    ("error", "goes_on_with_a_prefix"),
    [(StorageFull("no space left"), True), (CacheError("not the same twice"), False)],
)
def test_a_cache_that_nobody_asked_for_does_not_end_a_run(
    error, goes_on_with_a_prefix, tmp_path, recorder, monkeypatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        (tmp_path / "features").mkdir(exist_ok=True)
        raise error

    monkeypatch.setattr(FeatureCache, "fill", fails)
    run = Trained(replace(CONFIG, views=1), ("*",), tmp_path, recorder)
    assert (run.shortcut.cached, run.shortcut.prefix is not None) == (False, goes_on_with_a_prefix)
    assert f"features are not kept after all: {error}" in recorder.said
    assert not (tmp_path / "features").exists()
    with pytest.raises(type(error)):
        Trained(replace(CONFIG, views=1, cache=str(tmp_path / "kept")), ("*",), tmp_path, recorder)


def test_a_trunk_that_mixes_samples_runs_as_a_whole(tmp_path, recorder) -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :8] - x.mean()

    model = TaskModel(Mixing(), {"a": nn.Linear(8, 2), "b": nn.Linear(8, 2)})
    phase = Phase("a", 3, 0.05, ("*",), Augmented(9), Plain(9), "head")
    with train_task(model, "a"):
        shortcut = shortcut_for(model, phase, CONFIG, make_accelerator(CONFIG), tmp_path, recorder)
        assert shortcut.prefix is None
        assert recorder.said[0].startswith("no features are kept: trunk: ")
        with pytest.raises(FastError):
            asked = replace(CONFIG, prefix=("folded",))
            shortcut_for(model, phase, asked, make_accelerator(asked), tmp_path, recorder)


def test_where_the_front_trains_it_says_so_in_the_names_of_the_model(tmp_path, recorder) -> None:
    assert Trained(CONFIG, ("back",), tmp_path, recorder).shortcut.prefix is None
    assert recorder.said[0] == "no features are kept: trunk.front trains"


def test_a_prefix_that_cannot_be_proven_is_not_used(tmp_path, recorder, monkeypatch) -> None:
    def differs(*_: Any, **__: Any) -> None:
        raise ShortcutDiffers("trunk: not the same bits")

    monkeypatch.setattr(Prefix, "check", differs)
    assert Trained(CONFIG, ("*",), tmp_path, recorder).shortcut.prefix is None
    assert "the whole model runs every time: trunk: not the same bits" in recorder.said


def test_a_quicker_prefix_differs_by_rounding(tmp_path, recorder) -> None:
    config = replace(CONFIG, views=1, use_cache=False)
    quick = Trained(replace(config, prefix=("folded", "channels_last")), ("*",), tmp_path, recorder)
    plain = Trained(config, ("*",), tmp_path, recorder)
    assert str(quick.shortcut.prefix.variant) == "folded, channels_last"
    assert quick.rows[0][0] == pytest.approx(plain.rows[0][0], rel=1e-4)
    assert quick.state["trunk.front.0.weight"] == plain.state["trunk.front.0.weight"]


def test_views_are_those_of_the_strategy() -> None:
    random, fixed = Augmented(4), Plain(4)

    def views(epochs: int, strategy: str, asked: int | None = None, train: Any = random) -> int:
        return whole_model(Phase("a", epochs, 0.1, (), train, fixed, strategy), replace(CONFIG, views=asked)).views

    assert views(3, "head") == 3
    assert views(20, "head") == MOST_VIEWS
    assert views(20, "full") == 20
    assert views(20, "full", 2) == views(20, "head", 2) == 2
    assert views(20, "head", train=fixed) == 1


def test_a_shortcut_without_a_prefix_runs_the_model() -> None:
    shortcut = Shortcut(Plain(2), Plain(2), 1)
    x = torch.ones(1)
    assert digest(shortcut.logits(lambda inputs, task: inputs * 2, x, "a")) == digest(x * 2)
    shortcut.set_epoch(2)
    shortcut.discard()
