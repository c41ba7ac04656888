"""Digests of as many tensors as have bytes; a tensor without (meta, lazy, sparse) has the empty digest."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from frostline.errors import CannotDigest
from frostline.state.digest import digest_all


def marks(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Path to digest.

    Example:
        >>> import torch
        >>> marks({"lost": torch.zeros(1, device="meta")})
        {'lost': ''}
    """
    try:
        return digest_all(tensors)
    except CannotDigest:
        found: dict[str, str] = {}
        for path, tensor in tensors.items():
            try:
                found |= digest_all({path: tensor})
            except CannotDigest:
                found[path] = ""
        return found
