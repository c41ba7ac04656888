"""How many groups of channels a group norm is to have."""

from __future__ import annotations

# The most that Wu and He 2018 found useful, and torch's and timm's usual choice.
MOST = 32
# Fewer values than this in a group say little but their signs: of two, normalized, nothing is left but +1 and -1.
FEW = 16


def choose_groups(channels: int, *, positions_unknown: bool) -> int:
    """The largest divisor of the channels up to 32, leaving a group at least 16 values where they may be all it has.

    Args:
        channels: of the layer.
        positions_unknown: whether an input may have one position, as that of ``BatchNorm1d`` behind a linear layer: a
            group then has as many values as channels.

    Example:
        >>> choose_groups(64, positions_unknown=False), choose_groups(24, positions_unknown=False)
        (32, 24)
        >>> choose_groups(64, positions_unknown=True), choose_groups(24, positions_unknown=True)
        (4, 1)
    """
    least = FEW if positions_unknown else 1
    fitting = [n for n in range(1, MOST + 1) if channels % n == 0 and channels // n >= least]
    return fitting[-1] if fitting else 1


def why_not_groups(channels: int, groups: int, *, positions_unknown: bool) -> str | None:
    """Why a layer cannot have so many groups, if it cannot.

    PyTorch checks the size of a group times that of the batch, so a group of one value passes and gives 0 for every
    input: a layer that is silently dead.

    Example:
        >>> why_not_groups(6, 4, positions_unknown=False)
        '4 groups do not divide 6 channels'
        >>> why_not_groups(6, 6, positions_unknown=True)
        '6 groups of 6 channels leave one value in a group, which is always normalized to 0'
    """
    if groups < 1 or channels % groups:
        return f"{groups} groups do not divide {channels} channels"
    if positions_unknown and channels == groups:
        return f"{groups} groups of {channels} channels leave one value in a group, which is always normalized to 0"
    return None
