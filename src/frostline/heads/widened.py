"""Layers whose first outputs stay equal to the bit when outputs are added.

A plain layer with more rows does not do that: how a matrix product is blocked, and with it the order of its sums,
depends on the number of rows. So the rows that were there are multiplied apart from those that came later, each time in
exactly the shape in which they always were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.heads.initial import memory_order


class Widened(nn.Module):
    """What the widened layers have in common: rows in blocks, one for each time that rows were added.

    Parameters and ``state_dict`` are those of the plain layer, in the order of the classes as they are now, so that
    either loads into the other.

    Attributes:
        blocks: for each block the numbers of its rows, in the order in which they are multiplied; no block at all
            stands for one with all rows, as in the plain layer.
        order: the numbers of all blocks as a buffer, where the rows do not lie in that order already.
        columns: for each row where in ``order`` it is, likewise.
    """

    weight: Any
    bias: Any
    order: Tensor | None
    columns: Tensor | None
    blocks: tuple[tuple[int, ...], ...] = ()

    def set_blocks(self, blocks: Sequence[Sequence[int]]) -> None:
        """Say which rows are multiplied together. The parameters are left as they are.

        Args:
            blocks: the numbers of the rows; each row is in one block.

        Raises:
            ValueError: a row is in no block, or in several.

        Example:
            >>> layer = WidenedLinear(2, 3)
            >>> layer.set_blocks([[0, 2], [1]])
            >>> layer
            WidenedLinear(in_features=2, out_features=3, bias=True, blocks=2+1)
        """
        rows = list(chain.from_iterable(blocks))
        if sorted(rows) != list(range(self.weight.shape[0])):
            raise ValueError(f"set_blocks: the blocks {blocks} are not the {self.weight.shape[0]} rows, each once")
        self.blocks = tuple(tuple(block) for block in blocks if block)
        self._index_rows()

    def _index_rows(self) -> None:
        rows = list(chain.from_iterable(self.blocks))
        scattered = rows != sorted(rows)
        order = torch.tensor(rows, device=self.weight.device) if scattered else None
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("columns", None if order is None else order.argsort(), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        # `to_empty`, by which models come off the meta device, leaves the buffer with whatever lies in memory.
        self._index_rows()
        return self

    def _rows_in_blocks(self, name: str) -> list[Tensor]:
        """The rows of each block, side by side and with the strides that they had before there were others."""
        # From the table: tracers hand out a stand-in for the attribute, which has no strides.
        own = self._parameters.get(name)
        there: Tensor = getattr(self, name) if own is None else own
        lengths = [len(block) for block in self.blocks] or [len(there)]
        starts = accumulate([0, *lengths[:-1]])
        # Also without gradients the rows have to say that they require them, as the parameter would: torch multiplies
        # inputs of three dimensions in another way if the weight does not.
        with torch.inference_mode(False):
            rows: Tensor = getattr(self, name)
            if self._is_scattered():
                order, back = memory_order(there)
                rows = rows.permute(order).index_select(back[0], self.order).permute(back)  # type: ignore[arg-type]
            return [rows.narrow(0, start, length) for start, length in zip(starts, lengths, strict=True)]

    def _each_block(self, multiply: Callable[[Tensor, Tensor | None], Tensor], dim: int) -> Tensor:
        weights = self._rows_in_blocks("weight")
        biases = [None] * len(weights) if self.bias is None else self._rows_in_blocks("bias")
        joined = torch.cat([multiply(weight, bias) for weight, bias in zip(weights, biases, strict=True)], dim)
        return joined.index_select(dim, self.columns) if self._is_scattered() else joined  # type: ignore[arg-type]

    def _is_scattered(self) -> bool:
        return getattr(self, "order", None) is not None  # a layer made by its constructor has none yet

    def extra_repr(self) -> str:
        """The plain layer's, and how many rows each block has."""
        return f"{super().extra_repr()}, blocks={'+'.join(str(len(block)) for block in self.blocks)}"


class WidenedLinear(Widened, nn.Linear):
    """An ``nn.Linear`` to which outputs were added, made by :func:`~frostline.heads.widen.widen`.

    The outputs that were there before are equal to the bit to those of the layer before, whatever the batch, in eager
    mode. It copies, pickles and trains like an ``nn.Linear``; its blocks are not in the ``state_dict``, so a model that
    is built anew has to be widened anew before loading if its logits shall be equal to the bit.

    Example:
        >>> layer = WidenedLinear(4, 5)
        >>> layer.set_blocks([[0, 1, 2], [3, 4]])
        >>> old = nn.Linear(4, 3)
        >>> with torch.no_grad():
        ...     _ = old.weight.copy_(layer.weight[:3]), old.bias.copy_(layer.bias[:3])
        >>> x = torch.ones(7, 4)
        >>> torch.equal(layer(x)[:, :3], old(x))
        True
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(..., in_features) to (..., out_features)."""
        return self._each_block(lambda weight, bias: functional.linear(input, weight, bias), -1)


class WidenedConv1d(Widened, nn.Conv1d):
    """The same for an ``nn.Conv1d`` with ``groups=1``."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, C, L) to (N, out_channels, L), the N may be left out."""
        return self._each_block(lambda weight, bias: self._conv_forward(input, weight, bias), -2)


class WidenedConv2d(Widened, nn.Conv2d):
    """The same for an ``nn.Conv2d`` with ``groups=1``."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, C, H, W) to (N, out_channels, H, W), the N may be left out."""
        return self._each_block(lambda weight, bias: self._conv_forward(input, weight, bias), -3)


class WidenedConv3d(Widened, nn.Conv3d):
    """The same for an ``nn.Conv3d`` with ``groups=1``."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(N, C, D, H, W) to (N, out_channels, D, H, W), the N may be left out."""
        return self._each_block(lambda weight, bias: self._conv_forward(input, weight, bias), -4)
