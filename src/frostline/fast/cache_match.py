"""Whether what a folder holds is what is asked for: by key, and by reading a few samples again.

Knows keys, digests and datasets; knows nothing of how features are computed or kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from frostline.errors import CacheMismatch, CorruptCache
from frostline.fast.cache_key import CacheKey
from frostline.fast.cache_layout import INPUT_DIGEST
from frostline.fast.cache_manifest import REBUILD, Manifest
from frostline.fast.sample_parts import Form
from frostline.fast.sample_table import Ints
from frostline.fast.shelf import Shelf
from frostline.fast.views import ViewedSamples

_COMPARED = 8


def refuse_other_key(folder: Path, asked: CacheKey, found: Manifest, input_form: Form, target_form: Form) -> None:
    """Refuse features of another model, dataset or kind.

    Raises:
        CacheMismatch: something differs; each thing is named.
    """
    differing = asked.differences(found.key)
    for name, one, other in (("input", input_form, found.input), ("target", target_form, found.target)):
        differing += [f"{name} of a sample: asked {one}, found {other}"] if one != other else []
    if differing:
        lines = [f"{folder} holds features of something else", *differing, f"fix: {REBUILD}"]
        raise CacheMismatch("\n  ".join(lines))


def refuse_other_samples(samples: ViewedSamples, shelf: Shelf, indices: Ints, slots: Ints) -> None:
    """Read up to 8 samples again, evenly spaced, and compare them with what was read when their features were computed.

    So a transform is found that has changed and says nothing of itself, and a dataset that is another one.

    Args:
        samples: the dataset.
        shelf: what there is.
        indices: of samples that should be as they were.
        slots: where their features lie.

    Raises:
        CacheMismatch: one of them differs; it is named.
    """
    there = shelf.holds(0, slots)
    indices, slots = indices[there], slots[there]
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(_COMPARED, len(indices))).astype(np.int64))
    with samples.reading():
        for index, slot in zip(indices[chosen].tolist(), slots[chosen].tolist(), strict=True):
            try:
                row = shelf.rows(0, np.array([slot]), [INPUT_DIGEST])[INPUT_DIGEST.name][0]
            except CorruptCache:
                continue  # it will be computed again
            found, asked = bytes(row.tolist()).hex(), samples.read(index, 0).digest()
            if found != asked:
                why = "the dataset has another transform or seed"
                if not samples.keyed:
                    why += ", other samples or another order; without sample_key(index) a sample is its index"
                raise CacheMismatch(
                    f"sample {index} is not what it was when {shelf.folder} was filled\n"
                    f"  asked: digest {asked[:12]}…\n  found: digest {found[:12]}…: {why}\n  fix: {REBUILD}"
                )
