"""Passes over data in which the inputs of normalization layers are measured, sample by sample.

A pass runs in eval mode. Which statistics the layers normalize with is chosen by what lies in their buffers during the
forward pass, so that layers with a forward of their own, synchronized layers and the user's behave as they always do in
eval mode, and neither modes, momenta nor counters are touched.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from frostline.attach.ledger import holds_statistics
from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics
from frostline.norms.eager import eagerly
from frostline.norms.feed import Feed
from frostline.norms.layers import layout_of, running_statistics, statistics_of
from frostline.norms.policy import Blend
from frostline.state import names
from frostline.state.selection import Selector, select

Upstream: TypeAlias = Literal["batch", "running"]
_LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Seen:
    """What one call of a layer saw, per sample and channel.

    Attributes:
        path: the layer.
        call: which call of this layer it is within the forward pass, from 0.
        mean: ``(N, C)``, mean over the positions of each sample, float64.
        var: ``(N, C)``, biased variance over them, float64.
        positions: how many values a sample has in each channel.
        instances: whether the layer keeps the mean of the samples' own variances, as instance norm does.
    """

    path: str
    call: int
    mean: Tensor
    var: Tensor
    positions: int
    instances: bool = False

    @property
    def count(self) -> int:
        """Values per channel."""
        return self.positions * self.mean.shape[0]

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of the whole batch, by the law of total variance.

        For instance norm, which keeps nothing of the variance between samples, without that.
        """
        return self._pooled

    @cached_property
    def _pooled(self) -> tuple[Tensor, Tensor]:
        mean = self.mean.mean(0)
        if self.instances:
            return mean, self.var.mean(0)
        between = self.mean - mean
        return mean, torch.addcmul(self.var, between, between).mean(0)


def tracked_layers(model: nn.Module, *selectors: Selector) -> dict[str, nn.Module]:
    """The layers that keep running statistics, each once, by path.

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

    Where the mean is far above the standard deviation, the sample is shifted by its mean before it is squared, so that
    no digits are lost. Each sample and channel is dealt with by itself; its figures do not depend on its neighbours.

    Args:
        x: ``(N, C)`` or ``(N, C, ...)``, or with the channels in ``channel_dim``.
        channel_dim: dimension of the channels.

    Returns:
        Mean and variance, ``(N, C)`` in float64. Of float32 values the variance is right to ``1e-5`` of itself and the
        mean to ``1e-6`` standard deviations.

    Example:
        >>> mean, var, positions = sample_statistics(torch.tensor([[[1.0, 1.0, 5.0, 5.0]]]))
        >>> mean.item(), round(var.item(), 5), positions
        (3.0, 4.0, 4)
    """
    x = x.detach().movedim(channel_dim, 1)
    if x.dtype in _LOW_PRECISION:
        x = x.float()
    positions = x[0, 0].numel()
    if positions == 1:
        # Copied, because the model may write into its own tensor before the figures are read.
        mean = x.reshape(x.shape[:2]).to(torch.float64, copy=True)
        return mean, torch.zeros_like(mean), 1
    if x.device.type != "cpu":
        # Telling the samples apart would wait for the device, and there a pass over the values costs little.
        return *_by_shift(x), positions
    mean = x.mean(tuple(range(2, x.ndim)))
    square = _mean_square(x, positions)
    far = mean.square() > square * _FAR
    mean = mean.double()
    var = square.double().addcmul_(mean, mean, value=-1).clamp_(min=0)
    if bool(far.any()):
        shifted = _by_shift(x.flatten(2)[far][:, None])
        mean[far], var[far] = shifted[0][:, 0], shifted[1][:, 0]
    return mean, var, positions


# Above this share of the mean square, the squared mean is more than 16 variances. Below, the difference of the two
# loses a factor of 17 at most of the 1e-7 that sums of float32 values are right to.
_FAR = 16 / 17


def _mean_square(x: Tensor, positions: int) -> Tensor:
    """Mean of the squares over all but the first two dimensions."""
    over = tuple(range(2, x.ndim))
    # The norm needs no room for the squares, but it is slow where a sample does not lie in one piece, and loses digits
    # in long sums.
    if x[0].is_contiguous() and positions <= 2**14:
        return torch.linalg.vector_norm(x, dim=over).square_().div_(positions)
    return x.square().mean(over)


def _by_shift(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all but the first two dimensions, whatever the mean is."""
    over = tuple(range(2, x.ndim))
    mean = x.mean(over, keepdim=True)
    shifted = x - mean
    # What rounding left of the mean; the mean squared deviation is about the rounded mean, too.
    rest = shifted.mean(over).double()
    var = shifted.square_().mean(over).double() - rest.square()
    return mean.reshape(rest.shape) + rest, var.clamp_(min=0)


def one_pass(
    root: nn.Module,
    feed: Feed,
    layers: Mapping[str, nn.Module],
    receive: Callable[[Seen], None],
    *,
    upstream: Upstream = "running",
    beside: Mapping[str, nn.Module] | None = None,
    each_batch: Callable[[Any, Any], None] | None = None,
) -> int:
    """Run the model over all batches and hand on what each call of each layer saw.

    To be called inside :func:`~frostline.norms.untouched.untouched`. Compiled parts run eagerly.

    Args:
        root: the unwrapped model, in eval mode.
        feed: the batches.
        layers: what is measured.
        receive: called for each call of a layer, after the forward pass and in its order.
        upstream: ``running`` leaves the statistics as they lie in the buffers; with ``batch`` each of the layers
            normalizes as it would in training: with the statistics of its own batch, instance norm with those of each
            sample, held and frozen layers with their buffers.
        beside: layers that with ``batch`` do so too, and are not handed on.
        each_batch: called with the batch and the output after each forward pass.

    Returns:
        The number of batches.

    Raises:
        NonFiniteStatistics: a layer saw NaN or infinite values; the first one is named.
        NormsError: with ``batch``, a batch gives a layer one value per channel, of which there is no variance.
        NoStatistics: the loader is empty.
    """
    number = 0
    watch = _Watch({**layers, **(beside or {})}, upstream)
    with watch.hooked(), closing(iter(feed)) as batches:
        for batch in batches:
            with watch.forward_pass(number), eagerly():
                output = feed.run(root, batch)
            for seen in watch.taken():
                if seen.path in layers:
                    receive(seen)
            number += 1
            if each_batch is not None:
                each_batch(batch, output)
    return number


class _Watch:
    """Keeps what each call of some layers saw in a forward pass."""

    def __init__(self, layers: Mapping[str, nn.Module], upstream: Upstream) -> None:
        self._layers = layers
        trained = {path for path, layer in layers.items() if upstream == "batch" and _uses_batch_in_training(layer)}
        self._by_themselves = {path: layers[path] for path in trained if _can_do_without_buffers(layers[path])}
        self._by_buffers = trained - self._by_themselves.keys()
        self._runs = False
        self._batch = 0
        self._seen: list[Seen] = []
        self._calls: dict[str, int] = {}
        self._buffers: dict[tuple[str, str], Tensor | None] = {}

    @contextmanager
    def hooked(self) -> Generator[None]:
        """Within, the layers are watched."""
        handles = [
            layer.register_forward_pre_hook(partial(self._before, path), with_kwargs=True)
            for path, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def forward_pass(self, batch: int) -> Generator[None]:
        """Within, calls are kept, and layers that take part in it normalize with their batch."""
        self._runs, self._batch, self._seen, self._calls = True, batch, [], {}
        flags: list[_InstanceNorm] = []
        try:
            for path, layer in self._by_themselves.items():
                layout = layout_of(layer)
                self._put(path, layout.mean, None)
                self._put(path, layout.var, None)
                if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
                    layer.track_running_stats = False
                    flags.append(layer)
            yield
        finally:
            self._runs = False
            for (path, name), buffer in self._buffers.items():
                self._layers[path]._buffers[name] = buffer
            self._buffers = {}
            for layer in flags:
                layer.track_running_stats = True

    def taken(self) -> list[Seen]:
        """What was seen in the last forward pass, once it is known to be finite."""
        seen, self._seen = self._seen, []
        if not _finite(seen):
            bad = next(s for s in seen if not _finite([s]))
            raise NonFiniteStatistics(
                f"batch {self._batch}: the input of layer {bad.path!r} ({type(self._layers[bad.path]).__name__}) holds "
                "NaN or infinite values, and no layer before it saw any\n"
                "  fix: check this batch of the data, and the weights before that layer"
            )
        return seen

    def _before(self, path: str, layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if not self._runs:
            return
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if isinstance(layer, _InstanceNorm) and x.ndim == layer._get_no_batch_dim():
            x = x[None]
        if not x.numel():
            return
        layout = layout_of(layer)
        call = self._calls.get(path, 0)
        self._calls[path] = call + 1
        now = Seen(path, call, *sample_statistics(x, layout.channel_dim), layout.instances)
        self._seen.append(now)
        if path in self._by_buffers:
            self._check_count(now, layer)
            for name, value in zip((layout.mean, layout.var), now.pooled(), strict=True):
                old = layer._buffers[name]
                assert old is not None
                self._put(path, name, value.to(old.device, old.dtype))
        elif path in self._by_themselves:
            self._check_count(now, layer)

    def _put(self, path: str, name: str, value: Tensor | None) -> None:
        buffers = self._layers[path]._buffers
        self._buffers.setdefault((path, name), buffers[name])
        buffers[name] = value

    def _check_count(self, seen: Seen, layer: nn.Module) -> None:
        if (seen.positions if seen.instances else seen.count) == 1:
            raise NormsError(
                f"batch {self._batch} gives layer {seen.path!r} ({type(layer).__name__}) one value per channel, which "
                "has no variance\n  fix: larger batches (drop_last=True drops a last batch of one sample)"
            )


def _finite(seen: Sequence[Seen]) -> bool:
    """Whether all figures are; looked at together, because each look waits for the device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for each in seen:
        by_device.setdefault(each.mean.device, []).extend(each.pooled())
    return all(bool(torch.cat(tensors).isfinite().all()) for tensors in by_device.values())


def _uses_batch_in_training(layer: nn.Module) -> bool:
    """Whether the layer would normalize with its batch (or each sample) if the model were in train mode."""
    if holds_statistics(layer):
        return False
    policy = getattr(layer.__dict__.get("forward"), "policy", None)
    mode, layer.training = layer.training, True
    try:
        said = policy() if policy is not None else None
        read = statistics_of(layer)
    finally:
        layer.training = mode
    use = said.use if said is not None else read.uses if read is not None else "running"
    return not (use == "running" or isinstance(use, Blend))


def _can_do_without_buffers(layer: nn.Module) -> bool:
    """Whether taking its buffers away makes the layer normalize as in training.

    For instance norm there are no statistics that could be put in their place. In half precision those of a batch would
    be rounded, which PyTorch's kernels do not.
    """
    if "forward" in layer.__dict__:
        return False
    running = running_statistics(layer)
    low = running is not None and running[0].dtype in _LOW_PRECISION
    return isinstance(layer, _InstanceNorm) or (low and isinstance(layer, _BatchNorm))


def not_reached(layers: Mapping[str, nn.Module], reached: Mapping[str, Any]) -> str:
    """The layers that no batch came through, in words; empty if there is none."""
    missing = [path for path in layers if path not in reached]
    return names.name_folded(missing) if missing else ""
