"""Healthy nets on real images, in which faults are planted: trained normally, in seconds, from a seed.

Normally means batches of 32 to 128, a momentum of 0.1, light augmentation, a learning rate that ends at 0. A net is
trained once in a process; whoever asks for a model gets a copy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import torch
from planted_images import DATA, Look, Split, cifar10, digits, flat_and_noisy, pacs, shifted_and_flipped
from planted_models import ConvNet, DigitsMLP, ResNet20, timm_net
from torch import Generator, Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

Batch: TypeAlias = "tuple[Any, Tensor]"
# What one step of the optimizer is taken on: the losses of all its forward passes are added up.
Step: TypeAlias = "list[Batch]"
Prepare: TypeAlias = "Callable[[Tensor], Tensor]"

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS = ((0.3053,), (0.3760,))
RESNET20 = DATA / "checkpoints" / "resnet20-12fca82f.th"


@dataclass(frozen=True, eq=False)
class Net:
    """A trained net with its data.

    Attributes:
        name: which.
        seed: of its weights and of the order of its data.
        trained: the healthy model itself; take :meth:`fresh`, which is a copy.
        train: what it was trained on.
        held_out: what it was not.
        augment: the training augmentation.
        mean: of the pixels, per channel.
        std: of the pixels, per channel.
        batch_size: samples a batch in its training.
        lr: rate at which going on with its training makes sense.
        steps: steps of the optimizer that its statistics have seen.
        domains: names of its domains, by number; a net of one domain has none.
        part: dotted paths of the modules that make up about half of it, from the front.
    """

    name: str
    seed: int
    trained: nn.Module
    train: Split
    held_out: Split
    augment: Look
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    lr: float
    steps: int
    domains: tuple[str, ...] = ()
    part: tuple[str, ...] = field(default=())

    def fresh(self) -> nn.Module:
        """A copy of the healthy model, in eval mode."""
        return copy.deepcopy(self.trained).eval()

    def normalized(self, pixels: Tensor) -> Tensor:
        """Pixels as the model is given them."""
        shape = (-1, 1, 1)
        return (pixels - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)

    def batches(
        self,
        split: str | Split = "train",
        batch_size: int | None = None,
        *,
        seed: int = 0,
        samples: int | None = None,
        augment: bool | None = None,
        look: Look | None = None,
        prepare: Prepare | None = None,
    ) -> list[Batch]:
        """One pass over a split in random order, in full batches; a list, so each pass over it is the same.

        Args:
            split: ``train``, ``held_out`` or one of your own.
            batch_size: by default that of the training.
            seed: of the order, the augmentation and the noise.
            samples: at most so many.
            augment: whether the training augmentation is applied; by default to the training data.
            look: what happens to the pixels after that.
            prepare: in place of the normalization.
        """
        data = split if isinstance(split, Split) else (self.train if split == "train" else self.held_out)
        augment = split == "train" if augment is None else augment
        size = batch_size or self.batch_size
        generator = Generator().manual_seed(10_000 * self.seed + seed)
        order = torch.randperm(len(data), generator=generator)[:samples]
        found: list[Batch] = []
        for rows in order.split(size):
            if len(rows) < size:
                break
            pixels = data.pixels[rows]
            if augment:
                pixels = self.augment(pixels, generator)
            if look is not None:
                pixels = look(pixels, generator)
            found.append(((prepare or self.normalized)(pixels), data.labels[rows]))
        return found

    def stream(self, split: str | Split = "train", batch_size: int | None = None, **how: Any) -> Iterator[Batch]:
        """Batches without end: augmented, and in another order in each epoch."""
        epoch = how.pop("seed", 0)
        how.setdefault("augment", True)
        while True:
            yield from self.batches(split, batch_size, seed=epoch, **how)
            epoch += 1

    def train_more(
        self,
        model: nn.Module,
        steps: int,
        *,
        batch_size: int | None = None,
        lr: float | None = None,
        momentum: float | None = None,
        seed: int = 100,
        decay: bool = True,
        on: Iterable[Step] | None = None,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
        after_step: Callable[[nn.Module, int], None] | None = None,
    ) -> nn.Module:
        """Go on with the training, in place; the model comes back in eval mode.

        Args:
            model: usually a :meth:`fresh` one.
            steps: steps of the optimizer.
            batch_size: by default that of the training.
            lr: rate to begin with; by default :attr:`lr`.
            momentum: of the batch norms, from now on; by default it stays.
            seed: of the data's order.
            decay: whether the rate ends at 0, as it does in a training that is over.
            on: what the steps are taken on, in place of the net's training data.
            forward: in place of calling the model.
            after_step: called with the model and the number of steps taken.
        """
        if momentum is not None:
            for layer in norm_layers(model).values():
                layer.momentum = momentum
        source = iter(on) if on is not None else ([batch] for batch in self.stream(batch_size=batch_size, seed=seed))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.lr if lr is None else lr, momentum=0.9, weight_decay=5e-4
        )
        start = optimizer.param_groups[0]["lr"]
        model.train()
        for done in range(steps):
            if decay:
                optimizer.param_groups[0]["lr"] = start * (1 + math.cos(math.pi * done / steps)) / 2
            optimizer.zero_grad()
            for x, y in next(source):
                output = model(x) if forward is None else forward(model, x)
                functional.cross_entropy(output, y).backward()
            optimizer.step()
            if after_step is not None:
                after_step(model, done + 1)
        return model.eval()


def norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}


def reset_statistics(model: nn.Module) -> nn.Module:
    """All statistics as a new model has them."""
    for layer in norm_layers(model).values():
        layer.reset_running_stats()
    return model


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _trained(net: Net, steps: int, lr: float) -> Net:
    # `net.steps` is 0 until here: what is trained has just been built.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(net.seed)
        net.train_more(net.trained, steps, lr=lr, seed=0)
    return Net(**{**vars(net), "steps": steps})


@cache
def digits_mlp(seed: int = 0) -> Net:
    """The MLP of norm-facts, section 3: six layers with batch norm, batches of 32."""
    train, held_out = digits(seed)
    # Moving images of 8 x 8 pixels is no light augmentation for a net that does not convolve.
    augment = flat_and_noisy(1.0, 0.05)
    model = _built(DigitsMLP, seed)
    part = ("1", "2", "3")
    return _trained(Net("digits_mlp", seed, model, train, held_out, augment, *DIGITS, 32, 0.02, 0, (), part), 900, 0.1)


def _digits_cnn() -> nn.Module:
    return ConvNet(1, 10, [(16, 1), (16, 1), (32, 2), (32, 1), (32, 1)])


@cache
def digits_cnn(seed: int = 0) -> Net:
    """Five convolutions on the digits, batches of 32."""
    train, held_out = digits(seed)
    augment = shifted_and_flipped(1, False)
    model = _built(_digits_cnn, seed)
    part = ("trunk.0", "trunk.1", "trunk.2")
    return _trained(Net("digits_cnn", seed, model, train, held_out, augment, *DIGITS, 32, 0.02, 0, (), part), 450, 0.1)


@cache
def siamese_digits(seed: int = 0) -> Net:
    """The digits and their negatives through one net, both in each batch."""
    both: list[Split] = []
    for split in digits(seed):
        other = Split.of(1 - split.pixels, split.labels, 1)
        both.append(split.joined(other))
    augment = shifted_and_flipped(1, False)
    model = _built(_digits_cnn, seed)
    net = Net(
        "siamese_digits", seed, model, both[0], both[1], augment, (0.5,), (0.4,), 64, 0.02, 0,
        ("digits", "negatives"), ("trunk.0", "trunk.1", "trunk.2"),
    )  # fmt: skip
    return _trained(net, 500, 0.1)


@cache
def siamese(seed: int = 0) -> Net:
    """Photos and sketches of PACS through one net, both in each batch."""
    photo, sketch = pacs("photo", 0), pacs("sketch", 1)
    model = _built(lambda: ConvNet(3, 7, [(16, 1), (32, 2), (32, 1), (48, 2), (48, 1), (48, 1)]), seed)
    net = Net(
        "siamese", seed, model, photo[0].joined(sketch[0]), photo[1].joined(sketch[1]), shifted_and_flipped(2, True),
        *IMAGENET, 32, 0.01, 0, ("photo", "sketch"), ("trunk.0", "trunk.1", "trunk.2"),
    )  # fmt: skip
    return _trained(net, 600, 0.1)


def raw_resnet20() -> nn.Module:
    """The checkpoint as it is, which fits lossless CIFAR-10 and not its JPEG copy."""
    stored = torch.load(RESNET20, map_location="cpu", weights_only=True)["state_dict"]
    model = _built(ResNet20, 0)
    model.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()})
    return model.eval()


@cache
def resnet20(seed: int = 0) -> Net:
    """The ResNet-20 checkpoint, trained further on the JPEG copy of CIFAR-10 until its statistics fit that."""
    train, held_out = cifar10()
    part = ("layer1", "layer2")
    augment = shifted_and_flipped(2, True)
    net = Net("resnet20", seed, raw_resnet20(), train, held_out, augment, *IMAGENET, 32, 0.005, 0, (), part)
    return _trained(net, 300, 0.01)


@cache
def timm_efficientnet(seed: int = 0) -> Net:
    """A small EfficientNet of timm from scratch on the JPEG copy of CIFAR-10."""
    train, held_out = cifar10()
    part = ("blocks.0", "blocks.1")
    augment = shifted_and_flipped(2, True)
    net = Net("timm", seed, _built(timm_net, seed), train, held_out, augment, *IMAGENET, 64, 0.02, 0, (), part)
    return _trained(net, 350, 0.1)


NETS: dict[str, Callable[[int], Net]] = {
    "digits_mlp": digits_mlp,
    "digits_cnn": digits_cnn,
    "siamese_digits": siamese_digits,
    "siamese": siamese,
    "resnet20": resnet20,
    "timm": timm_efficientnet,
}
# These need no data but scikit-learn's.
EVERYWHERE = ("digits_mlp", "digits_cnn", "siamese_digits")
