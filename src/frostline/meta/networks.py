"""The small networks that few-shot learning is measured with, as plain PyTorch modules with names."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from frostline.errors import ModelError


def conv4(way: int | None, *, width: int = 64, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Make the network of most few-shot papers: four blocks of convolution, batch norm, ReLU and max-pooling.

    The weights are drawn from PyTorch's global generator, as its layers draw them.

    Args:
        way: outputs of the classifier ``head``; ``None`` leaves it out, for methods that compare embeddings.
        width: channels of each block.
        channels: of the images.
        size: height and width of the images, at least 16: each block halves it, rounding down.

    Raises:
        ModelError: the images are too small, or a number is below 1.

    Example:
        >>> import torch
        >>> conv4(5, width=8)(torch.zeros(2, 1, 28, 28)).shape, conv4(None, width=8)(torch.zeros(2, 1, 28, 28)).shape
        (torch.Size([2, 5]), torch.Size([2, 8]))
        >>> list(dict(conv4(5).named_children()))
        ['block1', 'block2', 'block3', 'block4', 'flat', 'head']

    Source:
        Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS 2016, section 4.1; with max-pooling also on
        Omniglot, where Finn et al. (2017) use strides instead.
    """
    return _net(way, blocks=4, width=width, channels=channels, size=size, padding=1, momentum=0.1)


def higher_conv3(way: int | None, *, width: int = 64, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Make the network of the Omniglot example of ``higher``: three blocks without padding, and a classifier.

    28 x 28 becomes 13, 5 and 1. The momentum of its batch norm is 1: running statistics are those of the last batch.

    Args:
        way: as for :func:`conv4`.
        width: the same.
        channels: the same.
        size: at least 22.

    Raises:
        ModelError: as for :func:`conv4`.

    Example:
        >>> import torch
        >>> higher_conv3(5)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])

    Source:
        facebookresearch/higher, ``examples/maml-omniglot.py``.
    """
    return _net(way, blocks=3, width=width, channels=channels, size=size, padding=0, momentum=1.0)


def conv2(way: int | None, *, width: int = 64, channels: int = 1, size: int = 8) -> nn.Sequential:
    """Make a network of two blocks, for images as small as the 8 x 8 digits.

    Args:
        way: as for :func:`conv4`.
        width: the same.
        channels: the same.
        size: at least 4.

    Raises:
        ModelError: as for :func:`conv4`.

    Example:
        >>> import torch
        >>> conv2(5, width=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 5])
    """
    return _net(way, blocks=2, width=width, channels=channels, size=size, padding=1, momentum=0.1)


NETWORKS = {"conv4": conv4, "conv3": higher_conv3, "conv2": conv2}


def _net(
    way: int | None, *, blocks: int, width: int, channels: int, size: int, padding: int, momentum: float
) -> nn.Sequential:
    if width < 1 or channels < 1 or (way is not None and way < 1):
        raise ModelError(f"a network of width {width} for {channels} channels and {way} classes\n  fix: 1 or more each")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    side, depth = size, channels
    for number in range(1, blocks + 1):
        side = (side - 2 + 2 * padding) // 2
        block = OrderedDict[str, nn.Module](
            conv=nn.Conv2d(depth, width, 3, padding=padding),
            norm=nn.BatchNorm2d(width, momentum=momentum),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
        )
        layers[f"block{number}"] = nn.Sequential(block)
        depth = width
    if side < 1:
        least = 2**blocks if padding else 22
        raise ModelError(
            f"images of {size} x {size} are too small for a network of {blocks} blocks, each of which halves them\n"
            f"  fix: at least {least} x {least}, or the network conv2"
        )
    layers["flat"] = nn.Flatten()
    if way is not None:
        layers["head"] = nn.Linear(width * side * side, way)
    return nn.Sequential(layers)
