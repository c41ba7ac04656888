"""Learners and optimizers are those that the settings name, and a checkpoint holds all of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from frostline.errors import CorruptCheckpoint, MetaError, PolicyError
from frostline.meta.digits_classes import digits
from frostline.meta.maml import MAML
from frostline.meta.prototypes import Prototypes
from frostline.meta.reptile import Reptile
from frostline.meta.run_learner import LEARNED, build, pack_learner, unpack_learner
from frostline.meta.run_settings import MetaConfig
from frostline.meta.tasks import Tasks

CPU = torch.device("cpu")


def built(shape: tuple[int, ...] = (1, 8, 8), **settings: Any) -> Any:
    return build(MetaConfig(**{"way": 3, "width": 4, "steps": 2, **settings}), shape, CPU)


def test_each_algorithm_is_its_learner():
    maml, fomaml, anil = (built(algorithm=name).learner for name in ("maml", "fomaml", "anil"))
    assert (type(maml), maml.order, len(maml.adapted)) == (MAML, 2, 10)
    assert (fomaml.order, fomaml.adapted) == (1, maml.adapted)
    assert (anil.order, anil.adapted) == (2, ("head.weight", "head.bias"))
    reptile, proto = built(algorithm="reptile"), built(algorithm="proto")
    assert (type(reptile.learner), type(reptile.optimizer)) == (Reptile, torch.optim.SGD)
    assert reptile.optimizer.param_groups[0]["lr"] == 1.0
    assert (type(proto.learner), hasattr(proto.learner.model, "head")) == (Prototypes, False)


def test_settings_reach_the_learner():
    learner = built(
        policy="support", multi_step=9, learn_rates="layer_step", checkpoint_steps=True, inner_lr=0.3
    ).learner
    assert str(learner.policy) == "support"
    assert learner.multi_step.iterations == 9
    assert (learner.rates.learn, learner.inner_lr, learner.checkpoint_steps) == ("layer_step", 0.3, True)


@pytest.mark.parametrize(("size", "network"), [(8, "conv2"), (15, "conv2"), (16, "conv4"), (28, "conv4")])
def test_the_network_fits_the_images(size: int, network: str):
    assert built((3, size, size)).network == network


def test_weights_depend_on_the_seed_alone_and_the_global_state_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (built(seed=seed).learner.model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(MetaError, match="images of 20 x 30 pixels"):
        built((3, 20, 30))
    with pytest.raises(PolicyError):
        built(policy="nonsense")


@pytest.mark.parametrize("settings", [{}, {"policy": "per_step", "learn_rates": "parameter", "multi_step": 3}])
def test_a_checkpoint_gives_back_all_of_both(settings: dict[str, Any]):
    tasks = Tasks(digits(), way=3, shot=1, queries=2)

    def train(made: Any, start: int) -> None:
        for index in range(start, start + 2):
            made.optimizer.zero_grad()
            made.learner.backward(tasks.batch("all", index, 2), threads=1)
            made.optimizer.step()

    whole, cut, fresh = built(**settings), built(**settings), built(**{**settings, "seed": 7})
    train(whole, 0)
    train(whole, 2)
    train(cut, 0)
    tensors, metadata = pack_learner(cut.learner, cut.optimizer)
    packed = {name: value.clone() for name, value in tensors.items()}
    unpack_learner(fresh.learner, fresh.optimizer, packed, metadata)
    train(fresh, 2)
    expected, _ = pack_learner(whole.learner, whole.optimizer)
    found, _ = pack_learner(fresh.learner, fresh.optimizer)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # The twin: what is kept beside the weights matters.
    naive = built(**{**settings, "seed": 7})
    naive.learner.load_state_dict(cut.learner.state_dict())
    train(naive, 2)
    assert not all(
        torch.equal(pack_learner(naive.learner, naive.optimizer)[0][name], expected[name]) for name in expected
    )


def test_a_file_of_another_learner_is_refused():
    made = built()
    tensors, metadata = pack_learner(made.learner, made.optimizer)
    without = {name: value for name, value in tensors.items() if not name.startswith(LEARNED)}
    with pytest.raises(CorruptCheckpoint, match="does not fit this learner"):
        unpack_learner(made.learner, None, without, metadata)
    with pytest.raises(CorruptCheckpoint, match="does not fit this learner"):
        unpack_learner(built(steps=3).learner, None, tensors, metadata)
    with pytest.raises(CorruptCheckpoint, match="differ in"):
        unpack_learner(built(way=4).learner, None, {}, metadata)
