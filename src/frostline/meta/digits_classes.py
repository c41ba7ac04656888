"""Scikit-learn's handwritten digits as few-shot classes: no download, ten classes, 174 to 183 images each.

Knows where the images come from; knows nothing of splits or tasks.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from frostline.extras import require
from frostline.meta.classes import ROTATIONS, ClassSet, ImageClass, refuse_unknown

# The pixels are counts of black dots in a 4 x 4 block: whole numbers from 0 to 16.
DARKEST_PIXEL = 16.0


def digits(*, rotations: Literal["classes", "none"] = "none") -> ClassSet:
    """Load the 1,797 digits as ten classes, "0" to "9", shape (1, 8, 8), values in [0, 1], strokes bright.

    Images keep the order that scikit-learn has them in. Reads no network and no random state.

    Args:
        rotations: "classes" makes 40 classes in ten groups of them.

    Raises:
        MissingExtra: scikit-learn is not installed.
        DataError: ``rotations`` is neither of the two.

    Example:
        >>> digits()
        <ClassSet scikit-learn digits: 10 classes in 10 groups, 1 x 8 x 8>
        >>> len(digits(rotations="classes"))
        40

    Source:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    refuse_unknown("rotations", rotations, ROTATIONS)
    loaded: Any = require("sklearn.datasets", extra="train", purpose="The embedded digits").load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32).div_(DARKEST_PIXEL).unsqueeze(1)
    labels = torch.tensor(loaded.target, dtype=torch.int64)
    upright = ClassSet(
        [ImageClass(str(digit), images[labels == digit]) for digit in range(10)],
        description={"source": "scikit-learn digits", "size": 8, "resample": "none", "inverted": True},
    )
    return upright.rotated() if rotations == "classes" else upright
