"""Running statistics in the buffers of layers: read, written all or none, and brought back to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.attach.ledger import holds_statistics
from frostline.errors import NormsError, name_some
from frostline.norms.layers import Layout, layout_of
from frostline.state import names
from frostline.state.digest import digest


@dataclass(frozen=True)
class LayerStatistics:
    """The tensors of one layer, as its buffers hold them or would.

    Attributes:
        mean: ``(C,)``.
        var: ``(C,)``, unbiased.
        batches: what the layer's counter says; ``None`` where it has none.
        layout: which of the layer's buffers they belong in; of a layer that is split into domains, those of one.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    layout: Layout

    def by_name(self) -> dict[str, Tensor]:
        """The tensors by the names of the buffers."""
        named = {self.layout.mean: self.mean, self.layout.var: self.var, _count_of(self.layout): self.batches}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Applied:
    """Statistics that were written, and what lay there before.

    Attributes:
        layers: the layers by path.
        before: name and value of each buffer that was written.
    """

    layers: dict[str, nn.Module]
    before: dict[str, dict[str, Tensor]]

    def undo(self) -> None:
        """Bring back, to the bit, what lay in the buffers before, whatever has moved them since; all layers or none.

        Raises:
            NormsError: a layer has been held since, or its buffers have another shape or type.
        """
        refuse_held(self.layers, "undo")
        write([(p, self.layers[p], values) for p, values in self.before.items()])


def why_held(layer: nn.Module) -> str | None:
    """Why a layer's statistics may not be written; ``None`` if they may.

    Example:
        >>> why_held(nn.BatchNorm1d(2)) is None
        True
    """
    return "held (frostline.freeze)" if holds_statistics(layer) else None


def statistics_in(layer: nn.Module) -> LayerStatistics:
    """Copies of what lies in a layer's buffers now.

    Example:
        >>> statistics_in(nn.BatchNorm1d(2)).var.tolist()
        [1.0, 1.0]
    """
    layout = layout_of(layer)
    mean, var, count = (layer._buffers.get(name) for name in (layout.mean, layout.var, _count_of(layout)))
    assert mean is not None
    assert var is not None
    return LayerStatistics(
        mean.detach().clone(), var.detach().clone(), None if count is None else count.detach().clone(), layout
    )


def _count_of(layout: Layout) -> str:
    """The counter goes by the name of the means: ``running_mean_photo`` has ``num_batches_tracked_photo``."""
    return "num_batches_tracked" + layout.mean.removeprefix("running_mean")


def buffer_of(path: str, layer: nn.Module, name: str) -> Tensor:
    """A layer's buffer.

    Raises:
        NormsError: it has none of that name.
    """
    buffer = layer._buffers.get(name)
    if buffer is None:
        raise NormsError(f"layer {path!r} has no buffer {name!r} any more\n  fix: plan again")
    return buffer


def refuse_held(layers: Mapping[str, nn.Module], what: str) -> None:
    """Refuse to write into layers that are held.

    Raises:
        NormsError: it names them.
    """
    held = [path for path, layer in layers.items() if why_held(layer)]
    if held:
        raise NormsError(
            f"{what}: layers are held by now: {name_some(held)}\n  fix: thaw the hold, or leave them out by a selector"
        )


def write(writes: Sequence[tuple[str, nn.Module, dict[str, Tensor]]]) -> None:
    """Write all, check by value, and put everything back if anything goes wrong, Ctrl-C too."""
    targets = [
        (path, name, buffer_of(path, layer, name), value) for path, layer, new in writes for name, value in new.items()
    ]
    for path, name, buffer, value in targets:
        if buffer.shape != value.shape or buffer.dtype != value.dtype:
            raise NormsError(
                f"layer {path!r}: {name} is {buffer.dtype} of shape {tuple(buffer.shape)} by now, no longer "
                f"{value.dtype} of shape {tuple(value.shape)}\n  fix: plan again"
            )
    before = [(buffer, buffer.detach().clone()) for _, _, buffer, _ in targets]
    try:
        _copy((buffer, value) for _, _, buffer, value in targets)
        wrong = [names.join(path, name) for path, name, buffer, value in targets if digest(buffer) != digest(value)]
        if wrong:
            raise NormsError(
                f"buffers do not hold what was written into them, so nothing is kept: {name_some(wrong)}\n"
                "  seen: two layers share one tensor\n  fix: give each layer buffers of its own"
            )
    except BaseException:
        _copy(before)
        raise


@torch.no_grad()
def _copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in pairs:
        buffer.copy_(value)
