"""Cached features: those of the extractor to the bit, computed once, refused where they are not what is asked for."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frostline.errors import CacheBusy, CacheError, CacheMismatch, CannotWrite, CorruptCache, StorageFull
from frostline.fast.cached_features import CachedFeatures
from frostline.fast.feature_cache import FeatureCache
from frostline.fast.features import Place
from frostline.fast.writer_lock import writing


class Twice:
    """An extractor that counts its samples."""

    rows = 4

    def __init__(self, weights: str = "w0", **entries: str) -> None:
        self.places = [Place("pool", (3,), torch.float32)]
        self.identity = {"weights": weights, "variant": "plain"}
        self.entries = entries or {"conv.weight": weights}
        self.samples: list[float] = []

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        self.samples += inputs[:, 0].tolist()
        return (2 * inputs[:, :3],)


class Maps(Twice):
    """Two places, of which one is a map and one holds integers."""

    def __init__(self) -> None:
        super().__init__()
        self.places = [Place("map", (2, 4, 5), torch.float32), Place("input:0", (3,), torch.int64)]

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs[:, :2, None, None] * torch.linspace(-1, 1, 20).view(4, 5), inputs.long()


class Plain(Dataset[Any]):
    """The same at each reading."""

    def __init__(self, count: int = 10, *, shift: float = 0.0) -> None:
        self.count, self.shift = count, shift

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([index + self.shift, index / 3, -index]), index % 3


class Keyed(Plain):
    """Samples that have names."""

    def __init__(self, names: str, **options: Any) -> None:
        super().__init__(len(names), **options)
        self.names = names

    def sample_key(self, index: int) -> str:
        return self.names[index]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3,), float(ord(self.names[index]) + self.shift)), ord(self.names[index])


class Random(Plain):
    """Draws from all three generators of the process."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()]), index


class Epochs(Plain):
    """Seeds itself by epoch and index."""

    epoch = 5

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([index, self.epoch, 1.0]), index


def filled(folder: Path, dataset: Any = None, extractor: Any = None, **options: Any) -> FeatureCache:
    cache = FeatureCache(folder, extractor or Twice(), Plain() if dataset is None else dataset, **options)
    cache.fill()
    return cache


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("view-*.safetensors"))


def all_of(cache: CachedFeatures, view: int = 0) -> Tensor:
    return cache.batch(range(len(cache)), view)[0][0]


# What comes back


@pytest.mark.parametrize("per_shard", [None, 3, 4])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_features_and_targets_come_back_to_the_bit(per_shard, workers, tmp_path) -> None:
    data = Plain()
    cache = filled(tmp_path, data, samples_per_shard=per_shard, workers=workers)
    assert len(shards(tmp_path)) == {None: 1, 3: 4, 4: 3}[per_shard]
    for order in ([3], [9, 0, 4, 4, 1], list(range(10)) * 5, torch.tensor([2, 7]), []):
        (features,), target = cache.batch(order)
        wanted = [data[int(index)] for index in order]
        assert features.tolist() == [(2 * x).tolist() for x, _ in wanted]
        assert target.tolist() == [label for _, label in wanted]
        assert (features.dtype, target.dtype) == (torch.float32, torch.int64)


def test_a_view_is_a_dataset_as_the_one_it_came_from(tmp_path) -> None:
    view = filled(tmp_path, samples_per_shard=3).view(0)
    features, target = view[-2]
    assert (len(view), features.tolist(), target, type(target)) == (10, (2 * Plain()[8][0]).tolist(), 2, int)
    batches = list(DataLoader(view, batch_size=4))
    assert torch.cat([x for x, _ in batches]).equal(2 * torch.stack([Plain()[index][0] for index in range(10)]))
    assert batches[0][1].tolist() == [0, 1, 2, 0]
    with pytest.raises(IndexError, match="10 to 10 were asked of 10"):
        view[10]


def test_what_is_read_may_be_written_to_without_harm(tmp_path) -> None:
    cache = filled(tmp_path)
    before = all_of(cache).clone()
    cache.view(0)[1][0].fill_(7)
    all_of(cache).fill_(7)
    assert all_of(cache).equal(before)


def test_several_places_and_nested_inputs_and_targets(tmp_path) -> None:
    class Data(Plain):
        def __getitem__(self, index: int) -> Any:
            return {"x": torch.tensor([index, 1.0, 2.0])}, {"box": torch.ones(2) * index, "label": (index, 0.5, None)}

    class Of(Maps):
        def __call__(self, inputs: Any) -> tuple[Tensor, ...]:
            return super().__call__(inputs["x"])

    cache = filled(tmp_path, Data(), Of())
    (maps, ints), target = cache.batch([3, 1])
    assert (tuple(maps.shape), ints.tolist()) == ((2, 2, 4, 5), [[3, 1, 2], [1, 1, 2]])
    assert target["box"].tolist() == [[3, 3], [1, 1]]
    assert [each if each is None else each.tolist() for each in target["label"]] == [[3, 1], [0.5, 0.5], None]
    features, target = cache.view(0)[3]
    assert isinstance(features, tuple)
    assert target["label"] == (3, 0.5, None)


def test_a_sample_may_be_the_input_alone(tmp_path) -> None:
    class Data(Plain):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0]

    cache = filled(tmp_path, Data())
    assert cache.batch([1])[1] is None
    assert cache.view(0)[1].equal(2 * Data()[1])


def test_it_is_opened_without_model_and_dataset_and_sent_to_other_processes(tmp_path) -> None:
    cache = filled(tmp_path)
    opened = FeatureCache.open(tmp_path)
    assert all_of(opened).equal(all_of(cache))
    assert (len(opened), opened.views, opened.places, opened.nbytes) == (10, 1, cache.places, cache.nbytes)
    assert opened.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir() if path.name != ".lock")
    assert "10 samples x 1 views at pool (float32)" in str(opened)
    assert pickle.loads(pickle.dumps(cache.view(0)))[4][0].equal(cache.view(0)[4][0])
    with pytest.raises(CacheError, match="holds no features"):
        FeatureCache.open(tmp_path / "none")


def test_what_is_not_computed_is_said(tmp_path) -> None:
    cache = FeatureCache(tmp_path, Twice(), Plain())
    with pytest.raises(CacheError, match=r"holds no features yet\n  fix: fill"):
        cache.batch([0])
    filled(tmp_path, Plain(5))
    with pytest.raises(CacheError, match="3 samples of view 0 are not computed yet, sample 5 first"):
        FeatureCache(tmp_path, Twice(), Plain(8)).batch(range(8))


# Once


def test_nothing_is_computed_twice_but_the_first_batch(tmp_path) -> None:
    extractor = Twice()
    report = FeatureCache(tmp_path, extractor, Plain()).fill()
    assert extractor.samples == [0, 1, 2, 3, 3, 2, 1, 0, *range(4, 10)]
    assert (report.computed, report.reused, report.damaged, report.moved) == (10, 0, (), 0)
    again = Twice()
    report = filled(tmp_path, extractor=again).fill()
    assert (again.samples, report.computed, report.reused) == ([], 0, 10)
    assert str(report).startswith("0 computed in 0.0 s, 10 reused: ")


def test_neither_generators_nor_the_epoch_of_the_dataset_move(tmp_path) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    data = Epochs()
    filled(tmp_path / "a", data, views=2)
    filled(tmp_path / "b", Random(), views=2)
    filled(tmp_path / "b", Random(), views=2)
    assert torch.get_rng_state().equal(states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate(), data.epoch) == (states[1], states[2], 5)


def test_the_estimate_is_said_before_anything_is_computed_and_is_right(tmp_path) -> None:
    extractor, said, seen = Twice(), [], []
    cache = FeatureCache(tmp_path / "c", extractor, Plain(1000), samples_per_shard=100)
    estimate = cache.estimate()
    assert (estimate.samples, estimate.missing, estimate.seconds, extractor.samples) == (1000, 1000, None, [])
    assert not (tmp_path / "c").exists()
    cache.fill(lambda line: said.append((line, len(extractor.samples))), lambda *each: seen.append(each))
    # The first batch, twice, is what the time is measured by.
    assert [count for _, count in said] == [8]
    assert "features of 1,000 samples: 9" in said[0][0]
    assert "all to compute, about " in said[0][0]
    assert (len(seen), seen[-1]) == (250, (1000, 1000))
    assert 0.5 < cache.nbytes / estimate.nbytes <= 1
    assert str(cache.estimate()).endswith("all there")
    json.dumps(cache.estimate().to_json())


def test_more_samples_are_added(tmp_path) -> None:
    filled(tmp_path, Plain(6))
    extractor = Twice()
    cache = FeatureCache(tmp_path, extractor, Plain(9))
    assert cache.estimate().missing == 3
    assert "3 to compute" in str(cache.estimate())
    assert cache.fill().computed == 3
    assert sorted(set(extractor.samples)) == [6, 7, 8]
    assert all_of(cache).equal(all_of(filled(tmp_path / "new", Plain(9))))
    assert len(FeatureCache.open(tmp_path)) == 9


def test_samples_with_keys_are_found_wherever_they_stand(tmp_path) -> None:
    filled(tmp_path, Keyed("acegi"))
    extractor = Twice()
    data = Keyed("bagihc")
    cache = filled(tmp_path, data, extractor)
    assert sorted(map(chr, map(int, set(extractor.samples)))) == ["b", "h"]
    assert all_of(cache)[:, 0].tolist() == [2 * ord(letter) for letter in "bagihc"]
    assert cache.batch(range(6))[1].tolist() == [ord(letter) for letter in "bagihc"]
    # Fewer again: nothing to compute, and whoever opens it sees the order that it was filled for last.
    assert filled(tmp_path, Keyed("cb")).fill().computed == 0
    assert all_of(FeatureCache.open(tmp_path))[:, 0].tolist() == [2 * ord(letter) for letter in "cb"]


def test_a_sample_whose_key_has_changed_is_computed_again(tmp_path) -> None:
    class Dated(Keyed):
        def sample_key(self, index: int) -> str:
            return f"{self.names[index]} {self.shift if index == 2 else 0}"

        def __getitem__(self, index: int) -> Any:
            return torch.full((3,), float(ord(self.names[index]) + (self.shift if index == 2 else 0))), 0

    filled(tmp_path, Dated("abcd"))
    extractor = Twice()
    cache = filled(tmp_path, Dated("abcd", shift=0.5), extractor)
    assert set(extractor.samples) == {ord("c") + 0.5}
    assert all_of(cache)[:, 0].tolist() == [2 * 97, 2 * 98, 2 * 99.5, 2 * 100]


def test_more_views_are_added_and_fewer_are_enough(tmp_path) -> None:
    filled(tmp_path, Epochs(), views=2)
    extractor = Twice()
    cache = FeatureCache(tmp_path, extractor, Epochs(), views=3)
    assert cache.estimate().missing == 10
    assert cache.fill().computed == 10
    assert [all_of(cache, view)[0, 1].item() for view in range(4)] == [2, 4, 6, 2]
    fewer = filled(tmp_path, Epochs(), views=1)
    assert fewer.view(7).number == 0
    assert FeatureCache.open(tmp_path).views == 3


# Views


def test_views_are_epochs_from_one_on(tmp_path) -> None:
    cache = filled(tmp_path, Epochs(), views=3)
    assert [all_of(cache, view)[:, 1].unique().tolist() for view in range(3)] == [[2], [4], [6]]
    assert cache.view(4)[0][0].equal(cache.view(1)[0][0])


def test_one_view_of_an_unseeded_transform_is_refused(tmp_path) -> None:
    with pytest.raises(CacheError, match=r"would freeze the augmentation[^$]*fix: views=8"):
        FeatureCache(tmp_path / "c", Twice(), Random())
    assert not (tmp_path / "c").exists()


def test_several_views_of_a_transform_that_draws_nothing_are_refused(tmp_path) -> None:
    with pytest.raises(CacheError, match="all 8 views would be the same"):
        FeatureCache(tmp_path, Twice(), Plain(), views=8)


def test_a_transform_with_a_generator_of_its_own_is_refused(tmp_path) -> None:
    class Own(Plain):
        generator = torch.Generator()

        def __getitem__(self, index: int) -> Any:
            return torch.rand(3, generator=self.generator), index

    with pytest.raises(CacheError, match="another one at each reading"):
        FeatureCache(tmp_path, Twice(), Own(), views=8)


def test_unseeded_views_differ_and_can_be_made_again(tmp_path) -> None:
    first = filled(tmp_path / "a", Random(), views=2)
    torch.rand(5), random.random(), np.random.rand()
    second = filled(tmp_path / "b", Random(), views=2, samples_per_shard=3)
    for view in range(2):
        assert all_of(first, view).equal(all_of(second, view))
    assert not (all_of(first, 0) == all_of(first, 1)).any()
    assert all_of(first).unique().numel() == 30
    assert not all_of(filled(tmp_path / "c", Random(), views=2, seed=1)).equal(all_of(first))
    # The naive way freezes one draw, and draws another one next time.
    assert not torch.stack([Random()[i][0] for i in range(10)]).equal(torch.stack([Random()[i][0] for i in range(10)]))


@pytest.mark.slow
def test_workers_read_unseeded_views_alike(tmp_path) -> None:
    here, there = (filled(tmp_path / str(n), Random(), views=2, workers=n) for n in (0, 2))
    assert all(all_of(here, view).equal(all_of(there, view)) for view in range(2))


@pytest.mark.parametrize("positions", ["any", "same"])
def test_a_sample_that_moves_keeps_its_augmentation_or_gets_the_one_of_its_place(positions, tmp_path) -> None:
    class Data(Keyed, Epochs):
        def __getitem__(self, index: int) -> Any:
            return torch.tensor([float(ord(self.names[index])), index, self.epoch]), 0

    filled(tmp_path, Data("abd"), views=2, positions=positions)
    cache = FeatureCache(tmp_path, Twice(), Data("abcd"), views=2, positions=positions)
    report = cache.fill()
    assert (report.computed, report.moved) == {"any": (2, 1), "same": (4, 0)}[positions]
    assert all_of(cache)[3].tolist() == [2 * ord("d"), {"any": 4, "same": 6}[positions], 2]
    assert ("1 samples have moved" in str(report)) == (positions == "any")


def test_two_samples_of_one_key_are_two_where_the_transform_is_random(tmp_path) -> None:
    class Data(Keyed, Epochs):
        def __getitem__(self, index: int) -> Any:
            return torch.tensor([float(ord(self.names[index])), index, self.epoch]), 0

    assert filled(tmp_path / "a", Data("aab"), views=2).fill().reused == 6
    assert filled(tmp_path / "b", Keyed("aab")).fill().reused == 2


# Something else


def test_other_weights_are_named(tmp_path) -> None:
    filled(tmp_path, extractor=Twice("a" * 32, stem="1", conv="2", fc="3"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CacheMismatch) as caught:
        FeatureCache(tmp_path, Twice("b" * 32, stem="1", conv="4", fc="5"), Plain())
    assert str(caught.value) == (
        f"{tmp_path} holds features of something else\n  weights: 2 of 3 tensors differ, conv first\n"
        "  fix: another folder, or rebuild=True to replace what is there"
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"preprocessing": "crop 192"}, "preprocessing: asked crop 192, found crop 224"),
        ({"dtype": torch.float16}, "dtype: asked float16, found that of the features"),
        ({"dataset": Keyed("abc")}, "samples told apart: asked by their keys, found by index"),
        ({"dataset": Epochs(), "views": 3}, "random transform: asked epochs, found none"),
    ],
)
def test_another_key_is_named(options, found, tmp_path) -> None:
    filled(tmp_path, preprocessing="crop 224")
    options = {"dataset": Plain(), "preprocessing": "crop 224", **options}
    with pytest.raises(CacheMismatch, match=found):
        FeatureCache(tmp_path, Twice(), options.pop("dataset"), **options)


def test_other_places_rows_and_forms_are_named(tmp_path) -> None:
    filled(tmp_path)

    class Doubles(Plain):
        def __getitem__(self, index: int) -> Any:
            return torch.zeros(4), 0.5

    extractor = Twice()
    extractor.places, extractor.rows = [Place("layer4", (3,), torch.float32)], 8
    with pytest.raises(CacheMismatch) as caught:
        FeatureCache(tmp_path, extractor, Doubles())
    assert str(caught.value).splitlines()[1:-1] == [
        "  places: asked layer4 (3,) float32, found pool (3,) float32",
        "  rows: asked 8, found 4",
        "  input of a sample: asked float32 (4,), found float32 (3,)",
        "  target of a sample: asked float, found int",
    ]


def test_a_transform_that_says_nothing_of_itself_is_found_by_reading_again(tmp_path) -> None:
    filled(tmp_path)
    with pytest.raises(CacheMismatch, match=r"sample 0 is not what it was[^$]*without sample_key"):
        FeatureCache(tmp_path, Twice(), Plain(shift=0.25))
    filled(tmp_path / "keyed", Keyed("abc"))
    with pytest.raises(CacheMismatch, match=r"sample 0 is not what it was[^$]*another transform or seed\n"):
        FeatureCache(tmp_path / "keyed", Twice(), Keyed("abc", shift=0.25))


def test_the_dataset_tells_of_its_preprocessing(tmp_path) -> None:
    class Told(Plain):
        preprocessing_key = "a"

    class Method(Plain):
        def preprocessing_key(self) -> str:
            return "b"

    filled(tmp_path, Told())
    with pytest.raises(CacheMismatch, match="preprocessing: asked b, found a"):
        FeatureCache(tmp_path, Twice(), Method())


def test_only_rebuild_overwrites_and_only_once(tmp_path) -> None:
    filled(tmp_path, samples_per_shard=3)
    (tmp_path / "notes.txt").write_text("mine")
    reader = FeatureCache.open(tmp_path)
    cache = FeatureCache(tmp_path, Twice("w1"), Plain(4), rebuild=True)
    assert cache.estimate().missing == 4
    assert len(shards(tmp_path)) == 4
    assert cache.fill().computed == 4
    assert cache.fill().computed == 0
    assert len(shards(tmp_path)) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob("*partial"))
    # Slots of the new cache may be those of other samples: who has read the old one is not given them.
    with pytest.raises(CorruptCache):
        reader.batch([0])


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for rebuild in (False, True):
        with pytest.raises(CacheError, match=r"holds something else, and was left alone\n  found: thesis.tex"):
            FeatureCache(tmp_path, Twice(), Plain(), rebuild=rebuild)
    with pytest.raises(CacheError, match="is a file, not a folder"):
        FeatureCache(tmp_path / "thesis.tex", Twice(), Plain())
    (tmp_path / "manifest.json").write_text('{"kind": "web app", "schema_version": 3}')
    with pytest.raises(CacheError, match="holds 'web app', not features"):
        FeatureCache(tmp_path, Twice(), Plain(), rebuild=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_manifest_that_is_damaged_or_of_another_version_or_gone(tmp_path) -> None:
    filled(tmp_path)
    manifest = tmp_path / "manifest.json"
    good = manifest.read_text()
    for content, error, found in (
        (good[:-9], CorruptCache, "it is no JSON of ours"),
        (good.replace('"pool"', '"pooh"'), CorruptCache, "its digest is another one"),
        (good.replace('"schema_version":1', '"schema_version":2'), CacheMismatch, "schema version 2"),
        ("[]", CorruptCache, "it is no JSON of ours"),
    ):
        manifest.write_text(content)
        with pytest.raises(error, match=rf"{found}\n  fix: .*rebuild=True"):
            FeatureCache(tmp_path, Twice(), Plain())
    manifest.unlink()
    with pytest.raises(CorruptCache, match="it is missing"):
        FeatureCache(tmp_path, Twice(), Plain())
    assert filled(tmp_path, rebuild=True).fill().reused == 10


# Damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, flip_header, Path.unlink])
def test_only_damaged_shards_are_computed_again(harm, tmp_path) -> None:
    whole = all_of(filled(tmp_path, samples_per_shard=3))
    harm(shards(tmp_path)[1])
    reader = FeatureCache.open(tmp_path)
    assert reader.batch([0, 9])[0][0].equal(whole[[0, 9]])
    with pytest.raises(CorruptCache, match=r"view-000-shard-00001\.safetensors is damaged"):
        reader.batch([4])
    extractor = Twice()
    cache = FeatureCache(tmp_path, extractor, Plain())
    report = cache.fill()
    assert (report.computed, report.damaged) == (3, ("view-000-shard-00001.safetensors",))
    assert "damaged, and computed again: view-000-shard-00001.safetensors" in str(report)
    assert set(extractor.samples) == {3, 4, 5}
    assert all_of(cache).equal(whole)
    # Who was reading finds what was computed again.
    assert all_of(reader).equal(whole)
    assert len(shards(tmp_path)) == 4


def test_a_damaged_table_is_refused(tmp_path) -> None:
    filled(tmp_path)
    flip(next(tmp_path.glob("samples-*")))
    for opening in (lambda: FeatureCache(tmp_path, Twice(), Plain()), lambda: FeatureCache.open(tmp_path)):
        with pytest.raises(CorruptCache, match=r"nobody can say which features are whose[^$]*rebuild=True"):
            opening()


def test_no_space_left_keeps_what_was_computed(tmp_path, monkeypatch) -> None:
    real, done = os.fsync, []

    def fsync(handle: int) -> None:
        done.append(handle)
        if len(done) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    cache = FeatureCache(tmp_path, Twice(), Plain(40), samples_per_shard=4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageFull, match="kept: what was computed before, and fill") as caught:
            cache.fill()
    assert caught.value.exit_code == 3
    assert not list(tmp_path.glob(".*partial"))
    extractor = Twice()
    left = FeatureCache(tmp_path, extractor, Plain(40), samples_per_shard=4)
    missing = left.estimate().missing
    assert 0 < missing < 40
    assert left.fill().computed == missing == len(set(extractor.samples))


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="is a file"):
        FeatureCache(tmp_path / "file" / "c", Twice(), Plain())
    cache = FeatureCache(tmp_path / "c", Twice(), Plain())
    (tmp_path / "c").symlink_to(tmp_path / "nowhere" / "further")
    with pytest.raises(CannotWrite, match="cannot be made"):
        cache.fill()


# Limits and arguments


def test_over_the_limit_nothing_is_computed_and_the_figures_are_told(tmp_path) -> None:
    extractor = Twice()
    cache = FeatureCache(tmp_path / "c", extractor, Plain(1000), limit=10_000)
    with pytest.raises(CacheError) as caught:
        cache.fill()
    assert str(caught.value).splitlines()[0].startswith("the features would take 7")
    assert "a limit of 10.0 kB; " in str(caught.value)
    assert f"fix: dtype=torch.float16 or torch.uint8, limit={cache.estimate().nbytes} or" in str(caught.value)
    assert (extractor.samples, (tmp_path / "c").exists()) == ([], False)
    filled(tmp_path / "c", Plain(1000), limit=cache.estimate().nbytes)
    assert filled(tmp_path / "c", Plain(1000), limit=10).fill().reused == 1000


def test_the_limit_is_half_of_what_is_free(tmp_path) -> None:
    estimate = FeatureCache(tmp_path, Twice(), Plain()).estimate()
    assert estimate.limit == estimate.free // 2


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"views": 0}, r"views=0: there cannot be fewer than 1\n  fix: views=1"),
        ({"samples_per_shard": 0}, "samples_per_shard=0"),
        ({"workers": -1}, "workers=-1"),
        ({"dtype": torch.float64}, r"cannot be kept as float64\n  expected: float16, bfloat16, uint8"),
        ({"dataset": Plain(0)}, "the dataset is empty"),
        ({"dataset": (x for x in range(2))}, "a generator, has no length"),
        ({"dataset": [("text", 0)]}, "a sample holds a str"),
    ],
)
def test_arguments_that_cannot_be_used(options, found, tmp_path) -> None:
    dataset = options.pop("dataset", Plain())
    with pytest.raises(CacheError, match=found):
        FeatureCache(tmp_path / "c", Twice(), dataset, **options)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sample_of_another_form_is_named(workers, tmp_path) -> None:
    class Odd(Plain):
        def __getitem__(self, index: int) -> Any:
            return torch.zeros(3, dtype=torch.float64 if index == 6 else torch.float32), 0

    with pytest.raises(CacheError) as caught:
        filled(tmp_path, Odd(), workers=workers)
    assert str(caught.value).startswith(
        "the input of sample 6 is of another form than that of sample 0\n  expected: float32 (3,)\n"
        "  found: float64 (3,)\n  fix: "
    )


def test_an_extractor_that_is_not_deterministic_is_refused(tmp_path) -> None:
    class Dropout(Twice):
        def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
            return (torch.dropout(inputs, 0.5, train=True),)

    with pytest.raises(CacheError, match="the first batch, computed again the other way round, differs at pool"):
        filled(tmp_path, extractor=Dropout())
    assert not shards(tmp_path)


def test_an_extractor_that_keeps_account_is_proven_once(tmp_path) -> None:
    extractor = Twice()
    extractor.steady = False
    FeatureCache(tmp_path / "a", extractor, Plain()).fill()
    assert extractor.steady
    extractor.samples.clear()
    FeatureCache(tmp_path / "b", extractor, Plain()).fill()
    assert extractor.samples == list(range(10))


def test_an_extractor_to_which_the_place_in_the_batch_matters_is_refused(tmp_path) -> None:
    """It gives the same twice, so running it twice as it is would not tell."""

    class Placed(Twice):
        def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
            return (2 * inputs + torch.arange(len(inputs)).view(-1, 1) * 1e-3,)

    with pytest.raises(CacheError, match="where a sample stands in its batch"):
        filled(tmp_path, extractor=Placed())


def test_an_extractor_that_gives_something_else_than_it_says_is_refused(tmp_path) -> None:
    extractor = Twice()
    extractor.places = [Place("pool", (4,), torch.float32)]
    with pytest.raises(CacheError, match=r"expected: pool \(4,\) float32\n  found: \(3,\) float32"):
        filled(tmp_path, extractor=extractor)


# Narrowing


@pytest.mark.parametrize(("dtype", "worst"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8), (torch.uint8, 1 / 255)])
def test_narrow_features_come_back_in_their_own_type_and_the_cost_is_measured(dtype, worst, tmp_path) -> None:
    data = Plain(50)
    cache = FeatureCache(tmp_path, Maps(), data, dtype=dtype, samples_per_shard=20)
    report = cache.fill()
    (maps, ints), _ = cache.batch(range(50))
    exact, exact_ints = Maps()(torch.stack([data[i][0] for i in range(50)]))
    assert (maps.dtype, ints.equal(exact_ints)) == (torch.float32, True)
    cost = cache.narrowing
    assert cost is not None
    assert list(cost.places) == ["map"]
    assert cost.max_abs == (maps.double() - exact.double()).abs().max().item() > 0
    measured = ((maps.double() - exact.double()).square().sum() / exact.double().square().sum()).sqrt().item()
    assert cost.rms == pytest.approx(measured, rel=1e-12)
    # Rounding to the nearest of 2 ** -p steps, or of 255 steps over a range of at most twice the largest value.
    assert cost.max_abs <= worst * exact.abs().max().item()
    assert f"kept as {str(dtype).removeprefix('torch.')}: map is off by" in str(report)
    assert FeatureCache.open(tmp_path).narrowing == cost
    assert FeatureCache.open(tmp_path).batch([7])[0][0].equal(maps[[7]])
    assert cache.nbytes < filled(tmp_path / "wide", data, Maps()).nbytes
    assert filled(tmp_path / "wide", data, Maps()).narrowing is None


def test_features_too_large_for_half_precision_are_refused(tmp_path) -> None:
    with pytest.raises(CacheError, match=r"pool: 1 features are too large for float16\n  found: up to 8e\+04"):
        filled(tmp_path, [(torch.tensor([1.0, 2.0, 40_000.0]), 0)], dtype=torch.float16)


# Processes

FILL = """
    import sys, time, torch
    from frostline.fast.feature_cache import FeatureCache
    from frostline.fast.features import Place

    class Slow:
        places, rows = [Place("pool", (3,), torch.float32)], 4
        identity, entries = {"weights": "w0", "variant": "plain"}, {"conv.weight": "w0"}

        def __call__(self, inputs):
            time.sleep(0.03)
            return (2 * inputs[:, :3],)

    data = [(torch.tensor([i, i / 3, -i]), i % 3) for i in range(200)]
    cache = FeatureCache(sys.argv[1], Slow(), data, samples_per_shard=8)
    cache.fill(progress=lambda done, total: print(done, flush=True))
"""


def filling(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FILL), str(folder)], stdout=subprocess.PIPE, text=True
    )


def until(process: subprocess.Popen[str], done: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= done:
            return


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_leaves_a_cache_that_is_valid_as_far_as_it_goes(tmp_path) -> None:
    with filling(tmp_path) as process:
        until(process, 40)
        # While it is at work: others read what is there, and nobody else may write.
        readers = [FeatureCache.open(tmp_path) for _ in range(2)]
        assert readers[0].batch([3])[0][0].tolist() == readers[1].batch([3])[0][0].tolist() == [[6, 2, -6]]
        with pytest.raises(CacheBusy, match=rf"written to by process {process.pid} on [^$]*fix: wait until it is done"):
            FeatureCache(tmp_path, Twice(), Plain(200)).fill()
        with pytest.raises(CacheError, match="not computed yet"):
            readers[0].batch([199])
        until(process, 80)
        # A reader that was opened before follows.
        assert readers[0].batch([70])[0][0][0, 0].item() == 140
        process.send_signal(signal.SIGKILL)
    (tmp_path / ".view-000-shard-00099.safetensors.0a1b2c3d.partial").write_bytes(b"half")
    (tmp_path / "view-000-shard-00098.safetensors").write_bytes(b"written, and not named yet")
    extractor = Twice()
    cache = FeatureCache(tmp_path, extractor, Plain(200), samples_per_shard=8)
    missing = cache.estimate().missing
    assert 0 < missing <= 128
    report = cache.fill()
    assert (report.computed, report.damaged) == (missing, ())
    assert sorted(set(extractor.samples)) == list(range(200 - missing, 200))
    assert all_of(cache).equal(2 * torch.stack([Plain(200)[i][0] for i in range(200)]))
    assert len(list(tmp_path.iterdir())) == len(shards(tmp_path)) + 3 == 28


def test_a_second_writer_of_the_same_process_is_refused_too(tmp_path) -> None:
    with writing(tmp_path), pytest.raises(CacheBusy):
        FeatureCache(tmp_path, Twice(), Plain()).fill()
    filled(tmp_path)


def test_a_shard_that_another_one_took_the_place_of_is_found(tmp_path) -> None:
    """The manifest that a reader has in hand may be older than the files."""
    reader_of = filled(tmp_path, samples_per_shard=5)
    reader = FeatureCache.open(tmp_path)
    for path in shards(tmp_path):
        path.unlink()
    filled(tmp_path, samples_per_shard=2)
    assert all_of(reader).equal(all_of(reader_of))


def test_reading_many_samples_takes_little_more_than_copying_them(tmp_path) -> None:
    class Wide(Twice):
        def __init__(self) -> None:
            super().__init__()
            self.places = [Place("pool", (2048,), torch.float32)]

        def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
            return (inputs[:, :1].expand(-1, 2048).contiguous(),)

    cache = filled(tmp_path, Plain(600), Wide(), samples_per_shard=50)
    rows = torch.randperm(600)[:32]

    def seconds() -> float:
        begun = time.perf_counter()
        cache.batch(rows)
        return time.perf_counter() - begun

    # The best of many, because machines are shared; ten times what it takes on a quiet one.
    assert min(seconds() for _ in range(50)) < 1e-3
