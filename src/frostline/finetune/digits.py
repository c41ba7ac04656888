"""The embedded default data: scikit-learn's 1,797 handwritten digits, with two properties to learn from each image.

Knows where the images come from and how they are split; knows nothing of models or training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from frostline.extras import require

VAL_SHARE = 0.25
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "digit": tuple("0123456789"),
    "parity": ("even", "odd"),
}
# The pixels are counts of black dots in a 4 x 4 block: whole numbers from 0 to 16.
DARKEST_PIXEL = 16.0


@dataclass(frozen=True)
class DigitsSplit:
    """One side of the split.

    Attributes:
        images: float32 in [0, 1], shape (N, 1, 8, 8).
        labels: for each property int64 class indices, shape (N,).
    """

    images: Tensor
    labels: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def dataset(self, property_name: str) -> TensorDataset:
        """The images paired with the labels of one property, a key of :data:`CLASS_NAMES`."""
        return TensorDataset(self.images, self.labels[property_name])


@dataclass(frozen=True)
class DigitsData:
    """The digits, split.

    Attributes:
        train: three quarters of every digit.
        val: the rest.
        class_names: for each property the names of its classes, in the order of their indices.
    """

    train: DigitsSplit
    val: DigitsSplit
    class_names: dict[str, tuple[str, ...]]


def digits_data(seed: int) -> DigitsData:
    """Load the digits and split them 75 to 25, each digit by itself.

    Reads no network and no global random state, and changes none: the split depends on ``seed`` alone. Images keep
    the order that scikit-learn has them in.

    Args:
        seed: seeds the generator that draws the validation images.

    Returns:
        Train and validation images with the labels of ``digit`` (ten classes) and ``parity`` (even, odd).

    Raises:
        MissingExtra: scikit-learn is not installed.

    Example:
        >>> data = digits_data(seed=0)
        >>> len(data.train), len(data.val), tuple(data.train.images.shape[1:])
        (1347, 450, (1, 8, 8))
        >>> data.class_names["parity"]
        ('even', 'odd')

    Source:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    loaded: Any = require("sklearn.datasets", extra="train", purpose="The embedded digits").load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32).div_(DARKEST_PIXEL).unsqueeze(1)
    digit = torch.tensor(loaded.target, dtype=torch.int64)

    in_val = torch.zeros(len(digit), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for value in range(len(CLASS_NAMES["digit"])):
        members = (digit == value).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator)
        in_val[members[order[: round(VAL_SHARE * len(members))]]] = True

    return DigitsData(
        train=_side(images, digit, ~in_val), val=_side(images, digit, in_val), class_names=dict(CLASS_NAMES)
    )


def _side(images: Tensor, digit: Tensor, chosen: Tensor) -> DigitsSplit:
    labels = {"digit": digit[chosen], "parity": digit[chosen] % 2}
    return DigitsSplit(images=images[chosen], labels=labels)
