"""The frozen prefix that the settings of a run ask for, proven on samples."""

from __future__ import annotations

import torch
from torch import Tensor

from frostline.fast import Prefix, PrefixPlan
from frostline.finetune.config import FinetuneConfig

# So many samples are looked at before, to prove that the prefix gives what the model gives.
CHECKED = 8


def asked_prefix(found: PrefixPlan, samples: Tensor, config: FinetuneConfig, *, rows: int) -> Prefix:
    """The prefix of a plan in the way that was asked for.

    Args:
        found: the plan.
        samples: to prove it on.
        config: the settings.
        rows: how many samples are computed at a time.

    Raises:
        FastError: this model cannot have it.
        ShortcutDiffers: it gives something else than the model.
    """
    words = [word for word in config.prefix if word != "bfloat16"]
    narrow = torch.bfloat16 if "bfloat16" in config.prefix else None
    prefix = found.prefix(*words, autocast=narrow, rows=rows)
    prefix.check(samples)
    return prefix
