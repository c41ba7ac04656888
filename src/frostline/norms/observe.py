"""Passes over data in which the inputs of normalization layers are measured, sample by sample.

A pass runs in eval mode. Which statistics the layers normalize with is chosen by what lies in their buffers during the
forward pass, so that layers with a forward of their own, synchronized layers and the user's behave as they always do in
eval mode, and neither modes, momenta nor counters are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics, name_some
from frostline.norms.feed import Feed
from frostline.norms.layers import Layout, layout_of, running_statistics, statistics_of
from frostline.state import names
from frostline.state.selection import Selector, select

Upstream: TypeAlias = Literal["batch", "running"]


@dataclass(frozen=True)
class Seen:
    """What one call of a layer saw, per sample and channel.

    Attributes:
        path: the layer.
        call: which call of this layer it is within the forward pass, from 0.
        mean: ``(N, C)``, mean over the positions of each sample, float64.
        var: ``(N, C)``, biased variance over them, float64.
        positions: how many values a sample has in each channel.
    """

    path: str
    call: int
    mean: Tensor
    var: Tensor
    positions: int

    @property
    def count(self) -> int:
        """Values per channel."""
        return self.positions * self.mean.shape[0]

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the whole batch, by the law of total variance."""
        mean = self.mean.mean(0)
        return mean, self.var.mean(0) + (self.mean - mean).square().mean(0)


def tracked_layers(model: nn.Module, *selectors: Selector) -> dict[str, nn.Module]:
    """The layers that keep running statistics and normalize with them in eval mode, each once, by path.

    Args:
        model: any module; wrappers are looked through.
        selectors: look only at this part.

    Raises:
        NothingSelected: a selector matches nothing.
        NoStatistics: a layer is lazy and has no statistics yet.

    Example:
        >>> list(tracked_layers(nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2))))
        ['0']
    """
    root = names.unwrap(model)
    inside = set(select(root, *selectors).modules) if selectors else None
    found: dict[str, nn.Module] = {}
    for path, module in root.named_modules():
        if (inside is not None and path not in inside) or statistics_of(module) is None:
            continue
        kept = running_statistics(module)
        if kept is None:
            continue
        if any(torch.nn.parameter.is_lazy(buffer) for buffer in kept):
            raise NoStatistics(
                f"layer {path!r} ({type(module).__name__}) is lazy and has no statistics yet\n"
                "  fix: run the model once, so that it learns its width"
            )
        found[path] = module
    return found


def sample_statistics(x: Tensor, channel_dim: int = 1) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each sample and channel, and the number of positions they are over.

    Each sample is shifted by its own mean before it is squared, so that a mean far above the standard deviation costs
    no digits, and a sample's figures do not depend on its neighbours in the batch.

    Args:
        x: ``(N, C)`` or ``(N, C, ...)``, or with the channels in ``channel_dim``.
        channel_dim: dimension of the channels.

    Example:
        >>> mean, var, positions = sample_statistics(torch.tensor([[[1.0, 1.0, 5.0, 5.0]]]))
        >>> mean.item(), var.item(), positions
        (3.0, 4.0, 4)
    """
    x = x.detach()
    if x.dtype in {torch.float16, torch.bfloat16}:
        x = x.float()
    channel_dim %= x.ndim
    over = [d for d in range(1, x.ndim) if d != channel_dim]
    if not over:
        return x.double(), torch.zeros(x.shape, dtype=torch.float64, device=x.device), 1
    positions = x.shape[1:].numel() // max(x.shape[channel_dim], 1)
    mean = x.mean(over, keepdim=True)
    shifted = x - mean
    rest = shifted.mean(over).double()
    squares = torch.linalg.vector_norm(shifted, dim=over).double().square()
    return mean.reshape(rest.shape).double() + rest, squares / positions - rest.square(), positions


def one_pass(
    root: nn.Module,
    feed: Feed,
    layers: Mapping[str, nn.Module],
    receive: Callable[[Seen], None],
    *,
    upstream: Upstream = "running",
    each_batch: Callable[[Any, Any], None] | None = None,
) -> int:
    """Run the model over all batches and hand on what each call of each layer saw.

    To be called inside :func:`~frostline.norms.untouched.untouched`.

    Args:
        root: the unwrapped model, in eval mode.
        feed: the batches.
        layers: what is measured.
        receive: called for each call of a layer, in the order of the forward pass.
        upstream: ``running`` leaves the statistics as they lie in the buffers; with ``batch`` each of the layers
            normalizes with those of its own batch.
        each_batch: called with the batch and the output after each forward pass.

    Returns:
        The number of batches.

    Raises:
        NonFiniteStatistics: a layer saw NaN or infinite values; the first one is named.
        NormsError: with ``batch``, a batch gives a layer one value per channel, of which there is no variance.
        NoStatistics: the loader is empty.
    """
    batches = 0
    for batch in feed:
        calls: dict[str, int] = {}

        def seen(path: str, found: tuple[Tensor, Tensor, int], calls: dict[str, int] = calls) -> Seen:
            call = calls.get(path, 0)
            calls[path] = call + 1
            return Seen(path, call, *found)

        with _hooked(layers, seen, receive, upstream, batches):
            output = feed.run(root, batch)
        batches += 1
        if each_batch is not None:
            each_batch(batch, output)
    return batches


@contextmanager
def _hooked(
    layers: Mapping[str, nn.Module],
    seen: Callable[[str, tuple[Tensor, Tensor, int]], Seen],
    receive: Callable[[Seen], None],
    upstream: Upstream,
    batch: int,
) -> Generator[None]:
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    handles: list[RemovableHandle] = []

    def before(path: str, layout: Layout, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if not x.shape[0]:
            return
        now = seen(path, sample_statistics(x, layout.channel_dim))
        if not bool(now.mean.sum().isfinite()) or not bool(now.var.sum().isfinite()):
            raise NonFiniteStatistics(
                f"batch {batch}: the input of layer {path!r} ({type(module).__name__}) holds NaN or infinite values, "
                "and no layer before it saw any\n  fix: check this batch of the data, and the weights before that layer"
            )
        if upstream == "batch":
            if now.count == 1:
                raise NormsError(
                    f"batch {batch} gives layer {path!r} ({type(module).__name__}) one value per channel, which has no "
                    "variance\n  fix: larger batches (drop_last=True drops a last batch of one sample)"
                )
            running = running_statistics(module)
            assert running is not None
            kept.setdefault(path, running)
            for name, old, new in zip((layout.mean, layout.var), running, now.pooled(), strict=True):
                module._buffers[name] = new.to(old.device, old.dtype if old.is_floating_point() else None)
        receive(now)

    try:
        for path, module in layers.items():
            layout = layout_of(module)

            def hook(
                module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                path: str = path,
                layout: Layout = layout,
            ) -> None:
                before(path, layout, module, args, kwargs)

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for path, buffers in kept.items():
            layout = layout_of(layers[path])
            layers[path]._buffers[layout.mean], layers[path]._buffers[layout.var] = buffers


def not_reached(layers: Mapping[str, nn.Module], reached: Mapping[str, Any]) -> str:
    """The layers that no batch came through, in words; empty if there is none."""
    missing = [path for path in layers if path not in reached]
    return name_some([str(f) for f in names.fold(missing)]) if missing else ""
