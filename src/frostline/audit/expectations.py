"""Why a tensor must stay where nothing was declared: flags and owners of the parameters around it, and modes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from frostline.attach.ledger import holds_statistics, ledger_of
from frostline.audit.rows import Row
from frostline.state import names

STATISTICS = ("norm.mean", "norm.var", "norm.count")


@dataclass(slots=True)
class Count:
    """Of the parameters below a module."""

    all: int = 0
    trainable: int = 0
    owned: int = 0


class Parameters:
    """How many parameters each module has below it, how many of them train, and how many an optimizer has."""

    def __init__(self, rows: Iterable[Row] = (), owned: Collection[int] = ()) -> None:
        self._counts: dict[str, Count] = {}
        for row in rows:
            if row.kind != "parameter":
                continue
            path = names.parent(row.path)
            while True:
                count = self._counts.setdefault(path, Count())
                count.all += 1
                count.trainable += row.tensor.requires_grad
                count.owned += id(row.tensor) in owned
                if not path:
                    break
                path = names.parent(path)

    def below(self, path: str) -> Count:
        """The counts of a module."""
        return self._counts.get(path, Count())

    def is_frozen(self, path: str) -> bool:
        """Whether a module has parameters below it and none of them requires a gradient."""
        count = self.below(path)
        return count.all > 0 and count.trainable == 0

    def frozen_above(self, path: str) -> bool:
        """Whether the nearest module at or above a path that has parameters has none that requires a gradient."""
        return self.is_frozen(self._nearest(path))

    def left_out(self, path: str) -> bool:
        """Whether optimizers have parameters of the model, and none of the nearest module that has any."""
        count = self.below(self._nearest(path))
        return self.below("").owned > 0 and count.all > 0 and count.owned == 0

    def thawed(self, path: str, then: Parameters) -> bool:
        """Whether the part of a module trains, although it did not at an earlier time: it was unfrozen, or taken up."""
        if then.frozen_above(path):
            return not self.frozen_above(path)
        return then.left_out(path) and not self.left_out(path)

    def _nearest(self, path: str) -> str:
        while path not in self._counts and path:
            path = names.parent(path)
        return path


def is_held(row: Row) -> bool:
    """Whether a hold is on a tensor now."""
    if row.kind == "parameter":
        ledger = ledger_of(row.owner)
        return ledger is not None and row.name in ledger.gradients
    return holds_statistics(row.owner)


def reason_of(row: Row, frozen: Collection[str], parameters: Parameters, in_eval: Collection[str]) -> str:
    """Why a tensor must stay, a key of :data:`~frostline.audit.contract.REASONS`; empty where it may move.

    Args:
        row: the tensor.
        frozen: the paths that were declared frozen.
        parameters: the counts of its model.
        in_eval: the modules that must stay in eval mode.
    """
    if is_held(row):
        return "hold"
    if row.path in frozen:
        return "declared"
    if row.kind == "parameter":
        return "" if row.tensor.requires_grad else "requires_grad"
    path = names.parent(row.path)
    if parameters.frozen_above(path):
        return "requires_grad"
    if parameters.left_out(path):
        return "optimizer"
    return "eval" if path in in_eval and row.role in STATISTICS else ""
