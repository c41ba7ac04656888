"""The settings of published work, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frostline.errors import MetaError
from frostline.state.names import nearest

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cbfinn-5way-1shot": {
        "way": 5,
        "shot": 1,
        "queries": 1,
        "inner_lr": 0.4,
        "steps": 1,
        "eval_steps": 3,
        "meta_batch": 32,
        "iterations": 60_000,
        "lr": 1e-3,
    },
    "cbfinn-20way-1shot": {
        "way": 20,
        "shot": 1,
        "queries": 1,
        "inner_lr": 0.1,
        "steps": 5,
        "meta_batch": 16,
        "iterations": 60_000,
        "lr": 1e-3,
    },
    "higher": {
        "way": 5,
        "shot": 5,
        "queries": 15,
        "inner_lr": 0.1,
        "steps": 5,
        "meta_batch": 32,
        "iterations": 3_700,
        "lr": 1e-3,
        "network": "conv3",
        "resample": "bicubic",
        "invert": False,
        "rotations": "none",
    },
}
DIFFERS: Mapping[str, str] = {
    "cbfinn-5way-1shot": "the network has max-pooling, where cbfinn/maml has strides on Omniglot",
    "cbfinn-20way-1shot": "the network has max-pooling, where cbfinn/maml has strides on Omniglot",
    "higher": "characters are split at random and the loss is a mean over tasks, where the example of higher takes the "
    "first 1,200 characters as os.walk lists them, and a sum",
}
"""What a preset of ours does not do as its original does."""


def preset(name: str) -> Mapping[str, Any]:
    """The settings of a preset, as :class:`~frostline.meta.run_settings.MetaConfig` takes them.

    Raises:
        MetaError: there is no such preset; the nearest is named.

    Example:
        >>> preset("higher")["network"]
        'conv3'

    Source: ``cbfinn/maml``, main.py, the usage instructions at its top; ``facebookresearch/higher``,
    examples/maml-omniglot.py.
    """
    if name not in PRESETS:
        close = nearest(name, PRESETS)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise MetaError(f"no preset is called {name!r}\n  fix: {meant}one of {', '.join(PRESETS)}")
    return PRESETS[name]
