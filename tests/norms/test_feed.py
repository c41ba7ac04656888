"""How batches go into a model: kinds of batches, where they are moved to, and that a pass leaves a loader as it was."""

from __future__ import annotations

from collections import UserDict, namedtuple
from contextlib import closing

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from frostline.errors import NormsError, NoStatistics
from frostline.norms import Feed

Pair = namedtuple("Pair", ["images", "labels"])


class Named(nn.Module):
    def forward(self, images, scale=1.0):
        return images * scale


X, Y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])
KINDS = {
    "tensor": (X, None),
    "tuple": ((X, Y), Y),
    "list": ([X, Y], Y),
    "tuple of one": ((X,), None),
    "three parts, labels last": ((X, "names", Y), Y),
    "named tuple": (Pair(X, Y), Y),
    "mapping": ({"images": X, "labels": Y}, Y),
    "mapping, target": ({"images": X, "target": Y}, Y),
    "mapping without labels": ({"images": X}, None),
    "another mapping": (UserDict(images=X, label=Y), Y),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_batches(kind):
    batch, labels = KINDS[kind]
    feed = Feed([batch])
    (given,) = feed
    assert torch.equal(feed.run(Named(), given), X)
    assert feed.labels(given) is labels


def test_other_keys_of_a_mapping_are_arguments():
    assert torch.equal(Feed([]).run(Named(), {"images": X, "scale": 3.0, "y": Y}), 3 * X)


def test_forward_gets_the_very_batch():
    """A named tuple, or a class of a library's own, is what `forward` was written for."""
    seen = []
    for batch in (Pair(X, Y), UserDict(images=X), object(), {"images": X}):
        Feed([], forward=lambda _model, b: seen.append(b), device="cpu").run(nn.BatchNorm1d(2), batch)
        assert seen.pop() is batch


class TestMoving:
    """The meta device stands for another one: it is there on every machine."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_tensor_is_moved_and_the_type_is_kept(self, kind):
        batch, _ = KINDS[kind]
        got = []
        Feed([], forward=lambda _model, b: got.append(b), device="meta").run(Named(), batch)
        (moved,) = got
        values = list(moved.values()) if hasattr(moved, "values") and kind != "tensor" else moved
        tensors = [values] if kind == "tensor" else [v for v in values if isinstance(v, torch.Tensor)]
        assert tensors
        assert all(t.is_meta for t in tensors)
        if kind not in {"another mapping"}:
            assert type(moved) is type(batch)
        assert X.device.type == "cpu"

    def test_to_the_model_by_default(self):
        got = []
        Feed([], forward=lambda _model, b: got.append(b)).run(nn.Linear(2, 2, device="meta"), X)
        assert got[0].is_meta

    def test_a_model_with_buffers_only(self):
        got = []
        model = nn.BatchNorm1d(2, affine=False, device="meta")
        Feed([], forward=lambda _model, b: got.append(b)).run(model, X)
        assert got[0].is_meta

    def test_a_library_s_own_batch_moves_itself(self):
        class Batch:
            def __init__(self, images):
                self.images = images

            def to(self, device):
                return Batch(self.images.to(device))

        got = []
        Feed([], forward=lambda _model, b: got.append(b), device="meta").run(nn.Identity(), Batch(X))
        assert got[0].images.is_meta


def test_an_unknown_batch_is_an_error_that_names_the_fix():
    with pytest.raises(NormsError, match=r"a batch of type int.*\n.*\n  fix: forward="):
        Feed([3]).run(nn.Identity(), 3)
    with pytest.raises(NormsError, match="a batch of type list"):
        Feed([[]]).run(nn.Identity(), [])


@pytest.mark.parametrize("loader", [[], iter(()), DataLoader(TensorDataset(X[:1]), batch_size=2, drop_last=True)])
def test_an_empty_loader(loader):
    with pytest.raises(NoStatistics, match="yields no batch"):
        list(Feed(loader))


class TestSeveralPasses:
    @pytest.mark.parametrize("loader", [[X], DataLoader(TensorDataset(X)), range(3)])
    def test_what_can_be_gone_over_again(self, loader):
        feed = Feed(loader)
        assert feed.several_passes("the check") is feed
        assert len(list(feed)) == len(list(feed)) > 0

    @pytest.mark.parametrize("loader", [iter([X]), (x for x in [X]), iter(DataLoader(TensorDataset(X)))])
    def test_what_is_empty_after_the_first(self, loader):
        with pytest.raises(
            NormsError, match=r"the check goes over the data several times(.|\n)*fix: pass a DataLoader"
        ):
            Feed(loader).several_passes("the check")

    def test_asking_draws_no_random_numbers_and_starts_no_worker(self):
        """`iter(loader)` would: a DataLoader draws the seed of its workers from torch's generator there."""
        loader = DataLoader(TensorDataset(X), shuffle=True, num_workers=2)
        before = torch.random.get_rng_state()
        Feed(loader).several_passes("the check")
        assert torch.equal(before, torch.random.get_rng_state())
        assert loader._iterator is None
        iter(DataLoader(TensorDataset(X)))
        assert not torch.equal(before, torch.random.get_rng_state()), "the naive way no longer draws"


def loaders(generator):
    data = TensorDataset(torch.arange(20.0)[:, None])
    return {
        "loader": DataLoader(data, batch_size=4, shuffle=True, generator=generator),
        "sampler": DataLoader(data, batch_size=4, sampler=RandomSampler(data, generator=generator)),
    }


@pytest.mark.parametrize("whose", ["loader", "sampler"])
class TestGenerators:
    def test_each_pass_sees_the_same_and_the_generator_is_as_before(self, whose):
        generator = torch.Generator().manual_seed(0)
        loader = loaders(generator)[whose]
        before = generator.get_state()
        first, second = ([b[0].flatten().tolist() for b in Feed(loader)] for _ in range(2))
        assert first == second
        assert torch.equal(generator.get_state(), before)

    def test_when_the_pass_is_left(self, whose):
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        with pytest.raises(KeyboardInterrupt), closing(iter(Feed(loaders(generator)[whose]))) as batches:
            for _ in batches:
                raise KeyboardInterrupt
        assert torch.equal(generator.get_state(), before)

    def test_the_bare_loader_does_not(self, whose):
        loader = loaders(torch.Generator().manual_seed(0))[whose]
        first, second = ([b[0].flatten().tolist() for b in loader] for _ in range(2))
        assert first != second
