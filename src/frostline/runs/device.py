"""The device that a command was asked to work on."""

from __future__ import annotations

import torch

from frostline.errors import ModelError


def pick_device(name: str) -> torch.device:
    """The device of this name, if it is here.

    Args:
        name: ``auto`` (the accelerator that torch finds, else the CPU), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        ModelError: there is no such device here.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    kind, colon, index = name.partition(":")
    have = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available() and (not index or index in map(str, range(torch.cuda.device_count()))),
        "mps": torch.backends.mps.is_available(),
    }
    if not have.get(kind, False) or (colon and (kind != "cuda" or not index)):
        found = [known for known, there in have.items() if there]
        problem = "not available here" if kind in have else f"there is no device {kind!r}"
        raise ModelError(f"--device {name}: {problem}.\n  fix: one of {', '.join(found)}")
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if have["cuda"] else "mps" if have["mps"] else "cpu")
