"""Statistics that lie in the buffers of layers for the time of a block."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from frostline.norms.layers import layout_of, running_statistics
from frostline.norms.observe import tracked_layers

Statistics = Mapping[str, "tuple[Tensor, Tensor]"]


@contextmanager
def statistics_in_place(root: nn.Module, statistics: Statistics) -> Generator[None]:
    """Let layers use other statistics inside the block; their buffers come back as the same tensors."""
    layers = {path: layer for path, layer in tracked_layers(root).items() if path in statistics}
    before = {path: running_statistics(layer) for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            layout = layout_of(layer)
            for name, value in zip((layout.mean, layout.var), statistics[path], strict=True):
                old = layer._buffers[name]
                assert old is not None
                layer._buffers[name] = value.to(old.device, old.dtype)
        yield
    finally:
        for path, buffers in before.items():
            assert buffers is not None
            layout = layout_of(layers[path])
            layers[path]._buffers[layout.mean], layers[path]._buffers[layout.var] = buffers
