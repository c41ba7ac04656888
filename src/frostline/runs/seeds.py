"""Seeds and orders that depend on a few numbers alone, so that a run that is done again sees the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def mix_seed(*parts: int) -> int:
    """One seed from several numbers; neighbours give unlike seeds.

    Example:
        >>> len({mix_seed(seed, epoch) for seed in range(20) for epoch in range(20)})
        400
    """
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        # The finalizer of SplitMix64 (Steele, Lea and Flood 2014), one round for each number.
        mixed = (mixed + part + 0x9E3779B97F4A7C15) % 2**64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


def hashed_seed(*parts: int) -> int:
    """The seed of one sample's augmentation, 64 bits.

    A hash, because sums and products of the parts make neighbouring epochs share their augmentation.

    Example:
        >>> hashed_seed(0, 1, 5) == hashed_seed(0, 1, 5) != hashed_seed(0, 5, 1)
        True
    """
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def order_of(size: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch goes through its samples, shape (size,). The global random state is not touched.

    Example:
        >>> first = order_of(4, seed=0, epoch=1)
        >>> first.sort().values.tolist(), torch.equal(first, order_of(4, seed=0, epoch=1))
        ([0, 1, 2, 3], True)
    """
    return torch.randperm(size, generator=torch.Generator().manual_seed(mix_seed(seed, epoch)))


def drops_last(size: int, batch_size: int) -> bool:
    """Whether an epoch leaves out its last batch: one of a single sample has no variance, which batch norm refuses.

    Example:
        >>> drops_last(65, 32), drops_last(64, 32), drops_last(1, 32)
        (True, False, False)
    """
    return size % batch_size == 1 and size > batch_size
