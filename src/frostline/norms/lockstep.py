"""Statistics that are exactly those of the network in eval mode, in one forward pass for each micro-batch.

Statistics that are estimated all at once describe layers whose predecessors used those of their batch, which in eval
mode they do not. Here every micro-batch stops at each normalization layer until all of them have come to it; then the
layer gets the statistics of the whole data, and they go on. That is synchronized batch norm over time instead of over
devices, and gives what the whole data as one batch would, with the unbiased variance that eval mode normalizes with.

The micro-batches are threads of which one runs at a time, in a fixed order, so the result does not depend on timing.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from frostline.errors import NonFiniteStatistics, NormsError, name_some
from frostline.norms.eager import eagerly
from frostline.norms.estimates import as_stored, moved
from frostline.norms.feed import Feed
from frostline.norms.layers import layout_of
from frostline.norms.moments import Moments
from frostline.norms.observe import Seen, sample_statistics
from frostline.norms.processes import in_all


def eval_consistent(
    root: nn.Module,
    feed: Feed,
    batches: Sequence[Any],
    layers: Mapping[str, nn.Module],
    *,
    each_batch: Callable[[Any, Any], None] | None = None,
    process_group: Any = None,
) -> dict[str, Moments]:
    """Run all batches in lockstep, and set each layer's statistics from all of them before any goes on.

    To be called inside :func:`~frostline.norms.untouched.untouched`, which puts the statistics back: afterwards those
    that were found lie in the layers. The activations of all batches are alive at the same time. Processes of a group
    stop at each layer for one another too.

    Args:
        root: the unwrapped model, in eval mode.
        feed: says how a batch goes into the model.
        batches: the data.
        layers: which layers to measure; every other one works as in eval mode.
        each_batch: called with each batch and its output.
        process_group: the processes, where ``torch.distributed`` is initialized.

    Returns:
        Moments by path, in the order in which the layers were reached.

    Raises:
        NormsError: the batches do not come to the same layers in the same order, or a layer is called twice in one
            forward pass: its second call depends on statistics that its first has to contribute to.
        NonFiniteStatistics: a layer saw NaN or infinite values.

    Example:
        >>> from frostline.norms.untouched import untouched
        >>> model, batches = nn.Sequential(nn.BatchNorm1d(1)), [torch.tensor([[1.0]]), torch.tensor([[3.0]])]
        >>> with untouched(model) as root:
        ...     found = eval_consistent(root, Feed(batches), batches, {"0": root[0]})
        >>> found["0"].mean.item(), found["0"].var(unbiased=True).item()
        (2.0, 2.0)

    Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (layer-by-layer estimation), by the
    mechanism of synchronized batch norm.
    """
    found: dict[str, Moments] = {}
    with ExitStack() as stack:
        stack.enter_context(eagerly())
        lanes = [stack.enter_context(_Lane(number, root, feed, batch)) for number, batch in enumerate(batches)]
        for path, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(_hook(path), with_kwargs=True).remove)
        while True:
            # Before anyone waits for another process, each says where its own batches are, or that one has failed.
            told = in_all(lambda: _advance(lanes), process_group)
            path, estimate = _agreed(told)
            if path is None:
                break
            if path in found:
                raise NormsError(
                    f"layer {path!r} ({type(layers[path]).__name__}) is called more than once in a forward pass: what "
                    "its second call is given depends on the statistics that it should help to set\n"
                    '  fix: method="all-at-once", which counts all calls'
                )
            if estimate is not None:
                found[path] = moved(estimate, _device(layers[path]))
                _put(path, layers[path], found[path])
        if each_batch is not None:
            for lane in lanes:
                each_batch(lane.batch, lane.output)
    return found


@dataclass(frozen=True)
class _Stop:
    """Where the batches of one process are.

    Attributes:
        path: the layer that all of them wait at; ``None`` if all are through.
        estimate: what they bring; ``None`` if they bring no samples.
    """

    path: str | None
    estimate: Moments | None = None


class _Cancelled(BaseException):
    """Ends a lane that waits; no handler of the model's own should take it for an error."""


_lane = threading.local()


class _Lane(AbstractContextManager["_Lane"]):
    """One micro-batch on its way through the model, in a thread that runs only while :meth:`go` waits for it.

    Attributes:
        batch: what goes in.
        output: what came out.
        waits_at: the layer it has stopped at; ``None`` once it is through.
        estimate: what it brings to that layer.
    """

    def __init__(self, number: int, root: nn.Module, feed: Feed, batch: Any) -> None:
        self.number, self.batch, self.output = number, batch, None
        self.waits_at: str | None = None
        self.estimate: Moments | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._may_run, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        settings = _settings_of_this_thread()
        self._thread = threading.Thread(target=context.run, args=(self._run, root, feed, settings), daemon=True)
        self._thread.start()

    def go(self) -> None:
        """Let it run to the next layer, or to its end.

        Raises:
            Exception: what the forward pass raised.
        """
        self._may_run.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error

    def stop(self, path: str, estimate: Moments | None) -> None:
        """Called in the lane: wait at a layer."""
        self.waits_at, self.estimate = path, estimate
        self._stopped.release()
        self._may_run.acquire()
        if self._cancelled:
            raise _Cancelled
        self.waits_at = self.estimate = None

    def __exit__(self, *_: object) -> None:
        self._cancelled = True
        self._may_run.release()
        self._thread.join()

    def _run(self, root: nn.Module, feed: Feed, settings: Callable[[], ExitStack]) -> None:
        self._may_run.acquire()
        try:
            if not self._cancelled:
                _lane.current = self
                with settings():
                    self.output = feed.run(root, self.batch)
        except _Cancelled:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._stopped.release()


def _settings_of_this_thread() -> Callable[[], ExitStack]:
    """What torch keeps for each thread by itself, as it is in this one: gradients are off, autocast, the device."""
    autocast = [
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if device == "cpu" or torch.cuda.is_available()
    ]
    device = torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def enter() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.no_grad())
        for name, enabled, dtype in autocast:
            if enabled:
                stack.enter_context(torch.autocast(name, dtype=dtype))
        if device is not None:
            stack.enter_context(torch.cuda.device(device))
        return stack

    return enter


def _hook(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        lane: _Lane | None = getattr(_lane, "current", None)
        if lane is None:
            raise NormsError(
                f"layer {path!r} is run in a thread that the forward pass started itself, so it cannot wait there\n"
                '  fix: method="all-at-once"'
            )
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        lane.stop(path, _estimate(path, layer, x, lane.number) if x.numel() else None)

    return before


def _estimate(path: str, layer: nn.Module, x: Tensor, batch: int) -> Moments:
    layout = layout_of(layer)
    if isinstance(layer, _InstanceNorm) and x.ndim == layer._get_no_batch_dim():
        x = x[None]
    seen = Seen(path, 0, *sample_statistics(x, layout.channel_dim), layout.instances)
    if not bool(seen.mean.sum().isfinite()) or not bool(seen.var.sum().isfinite()):
        raise NonFiniteStatistics(
            f"batch {batch}: the input of layer {path!r} ({type(layer).__name__}) holds NaN or infinite values, and no "
            "layer before it saw any\n  fix: check this batch of the data, and the weights before that layer"
        )
    if seen.instances and seen.positions == 1:
        raise NormsError(
            f"layer {path!r} ({type(layer).__name__}) keeps the variance within samples, and these have one value per "
            "channel\n  fix: larger inputs"
        )
    return Moments.of_seen(seen)


def _advance(lanes: Sequence[_Lane]) -> _Stop:
    """Let each batch run to its next layer, in their order, and merge what they bring to it."""
    for lane in lanes:
        lane.go()
    places = {lane.waits_at: lane.number for lane in lanes}
    if len(places) > 1:
        found = [f"batch {number}: {_place(at)}" for at, number in places.items()]
        raise NormsError(
            "the batches take different ways through the model, so they cannot wait for one another\n"
            f"  seen: {name_some(found)}\n"
            '  fix: method="all-at-once", or batches that take the same way'
        )
    brought = [lane.estimate for lane in lanes if lane.estimate is not None]
    return _Stop(next(iter(places), None), moved(_merged(brought), "cpu") if brought else None)


def _agreed(stops: Sequence[_Stop]) -> tuple[str | None, Moments | None]:
    """The layer that all processes are at, and what all of them bring."""
    places = list(dict.fromkeys(stop.path for stop in stops))
    if len(places) > 1:
        raise NormsError(
            f"the processes are at different layers: {name_some([_place(at) for at in places])}\n"
            "  fix: every process has to run the same model on batches that take the same way"
        )
    brought = [stop.estimate for stop in stops if stop.estimate is not None]
    return places[0], _merged(brought) if brought else None


def _place(path: str | None) -> str:
    return "through" if path is None else f"layer {path!r}"


def _merged(estimates: Sequence[Moments]) -> Moments:
    total = estimates[0]
    for each in estimates[1:]:
        total = total.merged(each)
    return total


def _put(path: str, layer: nn.Module, estimate: Moments) -> None:
    layout = layout_of(layer)
    for name, value in zip((layout.mean, layout.var), as_stored(path, layer, estimate), strict=True):
        buffer = layer._buffers[name]
        assert buffer is not None
        buffer.copy_(value)


def _device(layer: nn.Module) -> torch.device:
    buffer = layer._buffers[layout_of(layer).mean]
    assert buffer is not None
    return buffer.device
