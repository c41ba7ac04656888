"""A learner with its optimizer, made from the settings of a run, and everything of both as tensors for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostline.errors import CorruptCheckpoint, MetaError
from frostline.meta.learner import Learner
from frostline.meta.maml import MAML, MultiStep
from frostline.meta.networks import NETWORKS
from frostline.meta.prototypes import Prototypes
from frostline.meta.reptile import Reptile
from frostline.meta.run_settings import MetaConfig
from frostline.runs.training_state import pack, unpack_model, unpack_optimizer

# Images below this size are too small for four blocks.
_SMALL = 16
LEARNED = "learned/"


class Built(NamedTuple):
    """What a run trains, and what it trains it with."""

    learner: Learner
    optimizer: Optimizer
    network: str


def build(config: MetaConfig, shape: Sequence[int], device: torch.device) -> Built:
    """Make the learner and the optimizer of a run, with weights that depend on the seed alone.

    The global random state is given back as it was.

    Args:
        config: the settings.
        shape: of an image, (C, H, W).
        device: where they will be.

    Raises:
        ModelError: the images are too small for the network.
        MetaError: the settings do not go together.
        PolicyError: the network cannot have the policy.

    Example:
        >>> import torch
        >>> built = build(MetaConfig(way=3, width=4), (1, 8, 8), torch.device("cpu"))
        >>> built.network, built.learner.model.head.out_features
        ('conv2', 3)
    """
    channels, height, width = shape
    if height != width:
        raise MetaError(f"images of {height} x {width} pixels: the networks take square ones\n  fix: --size {height}")
    network = config.network or ("conv2" if height < _SMALL else "conv4")
    way = None if config.algorithm == "proto" else config.way
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = NETWORKS[network](way, width=config.width, channels=channels, size=height)
    learner = _learner(config, model.to(device))
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    assert config.lr is not None
    if config.algorithm == "reptile":
        return Built(learner, torch.optim.SGD(trained, lr=config.lr), network)
    return Built(learner, torch.optim.Adam(trained, lr=config.lr), network)


def pack_learner(learner: Learner, optimizer: Optimizer | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a learner and its optimizer: parameters, buffers, kept statistics, moments."""
    tensors, metadata = pack(learner, optimizer)
    extra = {LEARNED + name: value for name, value in learner.get_extra_state().items()}
    return {**tensors, **extra}, metadata


def unpack_learner(
    learner: Learner, optimizer: Optimizer | None, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Give a learner and its optimizer back what :func:`pack_learner` took of them.

    Raises:
        CorruptCheckpoint: the tensors are not those of such a learner.
    """
    unpack_model(learner, tensors)
    extra = {name.removeprefix(LEARNED): value for name, value in tensors.items() if name.startswith(LEARNED)}
    try:
        learner.set_extra_state(extra)
    except (MetaError, KeyError) as error:
        raise CorruptCheckpoint(
            f"resume: what the file keeps beside the weights does not fit this learner: {error}\n"
            "  fix: resume with the code that the run was started with"
        ) from error
    if optimizer is not None:
        unpack_optimizer(optimizer, tensors, metadata)


def _learner(config: MetaConfig, model: Any) -> Learner:
    if config.algorithm == "proto":
        return Prototypes(model, policy=config.policy)
    assert config.inner_lr is not None
    if config.algorithm == "reptile":
        return Reptile(model, inner_lr=config.inner_lr, steps=config.steps, policy=config.policy)
    return MAML(
        model,
        inner_lr=config.inner_lr,
        steps=config.steps,
        order=1 if config.order == 1 else 2,
        adapt="head" if config.algorithm == "anil" else "*",
        policy=config.policy,
        learn_rates=config.learn_rates,
        multi_step=None if config.multi_step is None else MultiStep(config.multi_step),
        checkpoint_steps=config.checkpoint_steps,
    )
