"""Whether heads that trained side by side had nothing to do with each other, nor with the trunk; to the bit.

Digests are taken at moments of which each costs one for each head, whatever their number: a head whose digest is the
same before the first round of steps and before its own first step was not moved by the steps of the heads before it;
one whose digest is the same after its own step and after the round was not moved by those behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from frostline.errors import CannotFreeze, name_some
from frostline.state import names
from frostline.state.aliases import find_aliases
from frostline.state.changes import StateDiff
from frostline.state.digest import digest_all
from frostline.state.inventory import SCHEMA_VERSION, inventory
from frostline.state.snapshot import Snapshot, snapshot
from frostline.tables import html_table, text_table


@dataclass(frozen=True)
class HeadIsolation:
    """What was compared of one head.

    Attributes:
        name: its name.
        shares_with: paths of tensors of other heads or of the trunk that lie in the same memory, at the end.
        still_in_first_round: whether it stayed equal to the bit while every other head took its first step.
        still_after_its_end: whether it is, at the end of all training, what it was when its own training ended.
        digest: of its tensors at the end, by path.
    """

    name: str
    shares_with: tuple[str, ...]
    still_in_first_round: bool
    still_after_its_end: bool
    digest: Mapping[str, str]

    @property
    def alone(self) -> bool:
        """Whether nothing else moved it."""
        return not self.shares_with and self.still_in_first_round and self.still_after_its_end


@dataclass(frozen=True)
class HeadsIsolation:
    """What training several heads did to each other and to the trunk.

    Attributes:
        heads: a row for each head.
        trunk: what moved of the trunk; ``None`` where the features came without one.
    """

    heads: tuple[HeadIsolation, ...]
    trunk: StateDiff | None

    @property
    def isolated(self) -> bool:
        """Whether no head was moved by another one, and the trunk by none."""
        return not self.trunk and all(head.alone for head in self.heads)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "isolated": self.isolated,
            "heads": [{**asdict(head), "alone": head.alone} for head in self.heads],
            "trunk": None if self.trunk is None else self.trunk.to_json(),
        }

    def __str__(self) -> str:
        return "\n".join([self._told(), text_table(_COLUMNS, self._rows())])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=self._told())

    def _told(self) -> str:
        moved = [head.name for head in self.heads if not head.alone]
        heads = (
            f"moved by others: {name_some(moved)}" if moved else f"{len(self.heads)} heads, each moved by itself alone"
        )
        if self.trunk is None:
            return f"{heads}; the features came without a trunk"
        entries = len(self.trunk.moved) + self.trunk.still
        trunk = f"moved: {name_some(self.trunk.paths)}" if self.trunk else f"{entries:,} entries equal to the bit"
        return f"{heads}; trunk: {trunk}"

    def _rows(self) -> list[list[object]]:
        return [
            [
                head.name,
                name_some(list(head.shares_with)) or "nothing",
                head.still_in_first_round,
                head.still_after_its_end,
            ]
            for head in self.heads
        ]


_COLUMNS = ["head", "shares memory with", "still in the others' first steps", "still after its end"]


class IsolationWatch:
    """Takes digests of heads and trunk at the moments that prove their isolation.

    Args:
        heads: name to module, before training.
        trunk: what gave the features, if it is at hand.

    Raises:
        CannotFreeze: a head shares memory with another one or with the trunk, so that each would train both.

    Example:
        >>> heads = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
        >>> watch = IsolationWatch(heads)
        >>> for name in heads:
        ...     watch.before_first_step(name)
        ...     _ = heads["b"].weight.data.add_(1)  # so the step of `a` moves `b` too
        ...     watch.after_first_step(name)
        >>> watch.after_first_round()
        >>> [head.still_in_first_round for head in watch.report().heads]
        [True, False]
    """

    def __init__(self, heads: Mapping[str, nn.Module], trunk: nn.Module | None = None) -> None:
        self._heads = heads
        self._trunk = trunk
        shared = {name: paths for name, paths in self._shared().items() if paths}
        if shared:
            name, paths = next(iter(shared.items()))
            raise CannotFreeze(
                f"the head {name!r} shares memory with {name_some(list(paths))}, so that a step of one moves both.\n"
                "  fix: modules of their own; a head is copied before it trains, unless its class copies otherwise"
            )
        self._trunk_before: Snapshot | None = None if trunk is None else snapshot(trunk)
        self._began = {name: self._digest(name) for name in heads}
        self._stepped: dict[str, dict[str, str]] = {}
        self._moved: set[str] = set()
        self._ended: dict[str, dict[str, str]] = {}

    def before_first_step(self, name: str) -> None:
        """Compare a head with what it was before any head took a step."""
        if self._digest(name) != self._began[name]:
            self._moved.add(name)

    def after_first_step(self, name: str) -> None:
        """Remember what a head's own first step made of it."""
        self._stepped[name] = self._digest(name)

    def after_first_round(self) -> None:
        """Compare every head with what its own first step made of it."""
        self._moved |= {name for name, before in self._stepped.items() if self._digest(name) != before}

    def ended(self, name: str) -> None:
        """Remember what a head is at the end of its training."""
        self._ended[name] = self._digest(name)

    def report(self) -> HeadsIsolation:
        """Compare with what is now."""
        shared = self._shared()
        rows: list[HeadIsolation] = []
        for name in self._heads:
            now = self._digest(name)
            still = self._ended.get(name, now) == now
            rows.append(HeadIsolation(name, shared[name], name not in self._moved, still, now))
        trunk, before = self._trunk, self._trunk_before
        return HeadsIsolation(tuple(rows), None if trunk is None or before is None else before.diff(trunk))

    def _shared(self) -> dict[str, tuple[str, ...]]:
        """For each head the paths outside it whose bytes overlap with its own."""
        owners: dict[str, str] = {}
        tensors: dict[str, Tensor] = {}
        parts = {names.join("heads", name): module for name, module in self._heads.items()}
        for owner, module in {**parts, **({} if self._trunk is None else {"trunk": self._trunk})}.items():
            for path, tensor in inventory(module).tensors.items():
                whole = names.join(owner, path)
                owners[whole], tensors[whole] = owner, tensor
        found = find_aliases(tensors)
        return {
            name: tuple(
                dict.fromkeys(
                    other
                    for path in tensors
                    if owners[path] == names.join("heads", name)
                    for other in found.get(path, ())
                    if owners[other] != owners[path]
                )
            )
            for name in self._heads
        }

    def _digest(self, name: str) -> dict[str, str]:
        return digest_all(inventory(self._heads[name]).tensors)
