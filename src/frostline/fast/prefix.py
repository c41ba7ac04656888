"""A frozen prefix that can be called: features without a graph, for a sample the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from frostline.checkpoint.tensor_writer import combined_digest
from frostline.errors import FastError, ShortcutDiffers
from frostline.fast.cut import Cut, Shape
from frostline.fast.features import Features, Place, filled_up
from frostline.fast.replay import run_prefix, run_rest
from frostline.fast.variants import PLAIN, Variant, derive
from frostline.norms.untouched import random_state_kept
from frostline.state import names
from frostline.state.digest import digest, digest_all
from frostline.state.inventory import inventory

# Samples at which all is looked at that features depend on beside the weights: code, settings, torch, the processor.
_PROBED = 2


class Prefix:
    """The frozen prefix of a model; made by :meth:`~frostline.fast.prefix_plan.PrefixPlan.prefix`.

    Called with the model's arguments, it gives the features of their samples: without a graph, whatever the mode of
    gradients, and with autocast off unless the variant has it. The model's state, modes, gradients and random states
    stay as they are. The plain variant runs the model's own modules and gives the bits that the model itself computes;
    the others run a copy.

    Batches are computed :attr:`rows` samples at a time, and the last ones are filled up with copies of the last sample,
    because kernels may choose another way for another number of samples: so the features of a sample are the same bits
    in every batch.

    Attributes:
        variant: how it is computed.
        rows: how many samples at a time.
        steady: whether a batch has been computed again the other way round, and gave the same bits.
        differences: for each place, how far the variant was from the plain prefix when it was checked, relative to the
            largest feature; zero for the plain one.

    Example:
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> hold = fl.freeze(model, "0")
        >>> prefix = fl.fast.plan(model, torch.ones(2, 4)).prefix()
        >>> features = prefix(torch.ones(5, 4))
        >>> prefix.rest(features).shape, features[0].requires_grad
        (torch.Size([5, 2]), False)
    """

    def __init__(self, root: nn.Module, cut: Cut, *, rows: int, variant: Variant = PLAIN) -> None:
        if rows < 1:
            raise FastError(f"prefix(rows={rows}): too few\n  fix: rows=32, for example")
        self._root, self._cut, self.rows, self.variant = root, cut, rows, variant
        self._running = derive(root, cut, variant)
        self.steady = False
        self.differences: tuple[float, ...] = (0.0,) * len(cut.places)
        self._entries = self._digests()
        self._probe: str | None = None

    def __repr__(self) -> str:
        places = ", ".join(map(str, self.places))
        return (
            f"frozen prefix of {type(self._root).__name__} up to {places}; {self.variant}, {self.rows} rows at a time"
        )

    @property
    def places(self) -> tuple[Place, ...]:
        """What it gives, in order."""
        return self._cut.places

    @property
    def entries(self) -> Mapping[str, str]:
        """Path of each tensor that the prefix reads to its digest when the prefix was made."""
        return self._entries

    @property
    def identity(self) -> Mapping[str, str]:
        """All that features depend on beside the samples, by name.

        ``computation`` is the digest of the features of two made-up samples: it stands for the code, for settings that
        are no tensors, for torch and its kernels, and for the processor.
        """
        if self._probe is None:
            features = self._compute(self._cut.made_up(_PROBED, self.device))
            named = dict(zip((place.name for place in self.places), features, strict=True))
            self._probe = combined_digest(digest_all(named))
        return {
            "weights": combined_digest(self._entries),
            "boundary": ", ".join(map(str, self.places)),
            "variant": str(self.variant),
            "rows": str(self.rows),
            "torch": torch.__version__,
            "device": self.device.type,
            "computation": self._probe,
        }

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        for path in self._cut.entries[:1]:
            module = self._root.get_submodule(names.parent(path))
            return cast("Tensor", getattr(module, path.rpartition(".")[2])).device
        return torch.device("cpu")

    def __call__(self, *args: Any, **kwargs: Any) -> Features:
        """The features of a batch of any number of samples; the first dimension of each is the sample."""
        leaves, _ = tree_flatten((args, dict(kwargs)))
        leaves = self._completed(leaves)
        samples = self._samples(leaves)
        parts = [self._chunk(leaves, start, samples) for start in range(0, samples, self.rows)]
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    def rest(self, features: Tensor | Sequence[Tensor], *, through: Callable[..., Any] | None = None) -> Any:
        """What the model itself returns for features, in its mode, with the graph of what trains.

        Args:
            features: as the prefix gives them, for any number of samples; where there is one place, it may be the
                tensor itself, as loaders of cached features give it.
            through: what is called in place of the model: a wrapper of it, such as ``DistributedDataParallel``.
        """
        several = (features,) if isinstance(features, Tensor) else tuple(features)
        return run_rest(self._root, self._cut, several, through)

    def unchanged(self) -> bool:
        """Whether what the prefix reads is still what it was when the prefix was made."""
        return self._entries == self._digests()

    def _digests(self) -> dict[str, str]:
        """Path of each tensor that the prefix reads to its digest now."""
        tensors = inventory(self._root).tensors
        return digest_all({path: tensors[path] for path in self._cut.entries if path in tensors})

    def check(
        self, *args: Any, tolerance: float | None = None, turned: bool = True, **kwargs: Any
    ) -> tuple[float, ...]:
        """Compare with the model itself on real samples, and a sample with itself in other company.

        Args:
            *args: a batch, as the model takes it; at most :attr:`rows` samples of it are looked at.
            tolerance: what a variant may differ by, relative to the largest feature; by default what the rounding of
                its layers explains, see :meth:`Variant.tolerance <frostline.fast.variants.Variant.tolerance>`. The
                plain one has to be equal to the bit whatever is given.
            turned: whether the batch is computed the other way round as well, which takes two whole chunks. A
                :class:`~frostline.fast.feature_cache.FeatureCache` does so by itself with its first one.
            **kwargs: likewise.

        Returns:
            The differences, for each place.

        Raises:
            ShortcutDiffers: they are larger, or the features of a sample depend on the others of its batch.
        """
        given = self._completed(tree_flatten((args, dict(kwargs)))[0])
        samples = min(self.rows, self._samples(given))
        leaves = self._each(given, lambda leaf: leaf[:samples].to(self.device))
        if turned:
            self._check_places(leaves, samples)
        # As many rows as there are: what is compared here does not depend on their number.
        own = self._compute(leaves)
        if self.variant == PLAIN:
            plain, allowed = self._of_the_model(leaves), 0.0
        else:
            plain = self._run(self._root, PLAIN, leaves)
            allowed = self.variant.tolerance(self._root, self._cut) if tolerance is None else tolerance
        self.differences = tuple(map(_difference, own, plain))
        for place, one, other, far in zip(self.places, own, plain, self.differences, strict=True):
            if far > allowed or (allowed == 0 and digest(one) != digest(other)):
                raise ShortcutDiffers(
                    f"{place.name}: {self.variant} differs from the plain prefix by {far:.2g} of the largest feature\n"
                    f"  allowed: {allowed:.2g}\n  fix: leave this variant out, or say tolerance= if that is meant"
                )
        return self.differences

    def _check_places(self, leaves: list[Any], samples: int) -> None:
        own = self._chunk(leaves, 0, samples)
        turned = self._chunk(self._each(leaves, lambda leaf: leaf.flip(0)), 0, samples)
        for place, one, other in zip(self.places, own, turned, strict=True):
            if digest(one) != digest(other.flip(0)):
                raise ShortcutDiffers(
                    f"{place.name}: the features of a sample are not the same bits at another place in the batch\n"
                    f"  variant: {self.variant}, {self.rows} samples at a time\n"
                    "  fix: another number of rows, or another variant"
                )
        # Copies that fill up a chunk prove less than samples do.
        self.steady = self.steady or samples == self.rows

    def _of_the_model(self, leaves: list[Any]) -> Features:
        """What the model computes when it is trained: with gradients on."""
        with random_state_kept(), _modes(self._root, self._cut.training), torch.enable_grad():
            return tuple(each.detach() for each in run_prefix(self._root, self._cut, leaves))

    def _samples(self, leaves: list[Any]) -> int:
        return next(len(leaf) for shape, leaf in zip(self._cut.arguments, leaves, strict=True) if _varies(shape))

    def _completed(self, leaves: list[Any]) -> list[Any]:
        expected = sum(1 for each in self._cut.arguments if _varies(each))
        if len(leaves) == expected != len(self._cut.arguments):
            # Only those that hold samples were given; the others are as they were when the model was cut.
            given = iter(leaves)
            leaves = [next(given) if _varies(each) else each for each in self._cut.arguments]
        if len(leaves) != len(self._cut.arguments):
            raise FastError(
                f"prefix: {len(leaves)} arguments, the model was cut with {len(self._cut.arguments)}\n"
                "  fix: the arguments of the model, as they were given to plan"
            )
        return leaves

    def _each(self, leaves: list[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
        """The arguments, with those changed that hold samples."""
        return [change(leaf) if _varies(each) else leaf for each, leaf in zip(self._cut.arguments, leaves, strict=True)]

    def _chunk(self, leaves: list[Any], start: int, samples: int) -> Features:
        chunk = self._each(leaves, lambda leaf: filled_up(leaf[start : start + self.rows].to(self.device), self.rows))
        return tuple(each[: min(self.rows, samples - start)] for each in self._compute(chunk))

    def _compute(self, chunk: list[Any]) -> Features:
        return self._run(self._running, self.variant, chunk)

    def _run(self, running: nn.Module, variant: Variant, chunk: list[Any]) -> Features:
        """What a variant gives for a chunk: by the model, or by the copy that it has."""
        kind, narrow = self.device.type, variant.autocast
        cast = torch.autocast(kind, dtype=narrow) if narrow else torch.autocast(kind, enabled=False)
        if variant.channels_last:
            chunk = [_channels_last(leaf) for leaf in chunk]
        with random_state_kept(), torch.no_grad(), _modes(running, self._cut.training), cast:
            features = run_prefix(running, self._cut, chunk)
        return tuple(
            each.detach().to(place.dtype).contiguous() for place, each in zip(self.places, features, strict=True)
        )


@contextmanager
def _modes(root: nn.Module, training: Mapping[str, bool]) -> Generator[None, None, None]:
    """Within, modules have the modes that they were found pure in."""
    changed: list[nn.Module] = []
    try:
        for path, mode in training.items():
            module = root.get_submodule(path)
            if module.training != mode:
                module.training = mode
                changed.append(module)
        yield
    finally:
        for module in changed:
            module.training = not module.training


def _varies(shape: Any) -> bool:
    return isinstance(shape, Shape)


def _channels_last(leaf: Any) -> Any:
    return leaf.contiguous(memory_format=torch.channels_last) if isinstance(leaf, Tensor) and leaf.ndim == 4 else leaf


def _difference(one: Tensor, other: Tensor) -> float:
    if not one.numel() or not one.is_floating_point():
        return 0.0 if torch.equal(one, other) else float("inf")
    size = float(other.abs().max())
    return float((one - other).abs().max()) / size if size else float((one - other).abs().max())
