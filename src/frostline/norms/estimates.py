"""The running statistics that data makes of a layer: measured all at once, or as the layer is reached in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import NonFiniteStatistics, NormsError
from frostline.norms.feed import Feed
from frostline.norms.layers import running_statistics
from frostline.norms.moments import Moments
from frostline.norms.observe import Seen, Upstream, one_pass


def measured(
    root: nn.Module,
    feed: Feed,
    layers: Mapping[str, nn.Module],
    upstream: Upstream,
    each_batch: Callable[[Any, Any], None] | None = None,
) -> dict[str, Moments]:
    """One pass over the data; to be called inside :func:`~frostline.norms.untouched.untouched`.

    Args:
        root: the unwrapped model, in eval mode.
        feed: the batches.
        layers: what is measured.
        upstream: ``"batch"`` for what the layers see when each of them normalizes as in training (all at once), or
            ``"running"`` for what they see in eval mode.
        each_batch: called with the batch and the output after each forward pass.

    Returns:
        Moments by path, in the order in which the layers were reached.
    """
    found: dict[str, Moments] = {}

    def receive(seen: Seen) -> None:
        new = Moments.of_seen(seen)
        found[seen.path] = found[seen.path].merged(new) if seen.path in found else new

    one_pass(root, feed, layers, receive, upstream=upstream, each_batch=each_batch)
    return found


def moved(moments: Moments, device: torch.device | str) -> Moments:
    """The same moments on another device."""
    return replace(moments, mean=moments.mean.to(device), m2=moments.m2.to(device))


def as_stored(path: str, layer: nn.Module, moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance as the layer's buffers would hold them: their type, their device.

    Raises:
        NormsError: there is a single value per channel.
        NonFiniteStatistics: the buffers' type cannot hold it.

    Example:
        >>> moments = Moments.of(torch.tensor([[1.0], [3.0]]))
        >>> [each.dtype for each in as_stored("bn", nn.BatchNorm1d(1).half(), moments)]
        [torch.float16, torch.float16]
    """
    named = f"layer {path!r} ({type(layer).__name__})"
    running = running_statistics(layer)
    assert running is not None
    mean, var = moments.mean, moments.var(unbiased=True)
    if moments.count < 2:
        raise NormsError(
            f"{named} was given one value per channel in all, which has no variance\n  fix: more data to estimate from"
        )
    stored = mean.to(running[0].device, running[0].dtype), var.to(running[1].device, running[1].dtype)
    if not all(bool(each.isfinite().all()) for each in stored):
        raise NonFiniteStatistics(
            f"the statistics of {named} do not fit into {running[1].dtype}: the largest variance is "
            f"{float(var.max()):.4g}\n  fix: keep its buffers in float32 (layer.float()), as autocast does"
        )
    return stored
