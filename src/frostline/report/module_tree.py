"""Entries under dotted paths to a nested tree that counts what is under every module; pure Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

# Browsers stop nesting elements at about 500; what lies deeper than this keeps its dots in one name.
DEEPEST = 24


@dataclass(frozen=True)
class HeldEntry:
    """One entry that was meant to stay.

    Attributes:
        path: the dotted path.
        kind: ``parameter``, ``buffer``, ``mode``, ``requires_grad`` or ``config``.
        role: what the entry is for.
        before: its digest before the run, or the value of a flag.
        after: the same after it.
        equal: whether the two are equal to the bit.
    """

    path: str
    kind: str
    role: str
    before: str
    after: str
    equal: bool


@dataclass(frozen=True)
class MovedEntry:
    """One entry that is not what it was.

    Attributes:
        path: the dotted path.
        kind: as in :class:`HeldEntry`.
        role: what the entry is for.
        max_abs: the largest absolute difference; ``None`` where it is not known.
        mean_abs: the mean absolute difference, likewise.
    """

    path: str
    kind: str
    role: str
    max_abs: float | None
    mean_abs: float | None


@dataclass(frozen=True)
class Leaf:
    """One entry as the tree shows it.

    Attributes:
        name: the part of the path below its module.
        path: the dotted path.
        kind: as in :class:`HeldEntry`.
        role: what the entry is for.
        fate: ``held`` (and equal), ``moved`` (though it was meant to stay) or ``trained``.
        before: the digest or value before; empty where it was not kept.
        after: the same after.
        max_abs: the largest absolute difference, where known.
        mean_abs: the mean absolute difference, where known.
    """

    name: str
    path: str
    kind: str
    role: str
    fate: str
    before: str = ""
    after: str = ""
    max_abs: float | None = None
    mean_abs: float | None = None


@dataclass(frozen=True)
class Node:
    """One module with everything under it.

    Attributes:
        name: the last part of its path; empty for the model itself.
        path: its dotted path; empty for the model itself.
        leaves: its own entries.
        children: the modules right below it.
        held: how many entries here and below were held and are equal.
        moved: how many were meant to stay and moved.
        trained: how many were meant to move and did.
    """

    name: str
    path: str
    leaves: tuple[Leaf, ...]
    children: tuple[Node, ...]
    held: int
    moved: int
    trained: int

    @property
    def total(self) -> int:
        """How many entries are here and below."""
        return self.held + self.moved + self.trained


def grow_tree(held: Iterable[HeldEntry], trained: Iterable[MovedEntry] = (), moved: Iterable[MovedEntry] = ()) -> Node:
    """Arrange entries under their modules, in the order in which they come.

    Args:
        held: the entries that were meant to stay.
        trained: the entries that were meant to move and did.
        moved: how far entries that were meant to stay moved; one that ``held`` lacks gets a leaf of its own.

    Returns:
        The model; the arguments stay as they are.

    Example:
        >>> tree = grow_tree(
        ...     [HeldEntry("trunk.bn.running_mean", "buffer", "norm.mean", "a1", "a1", True)],
        ...     [MovedEntry("head.weight", "parameter", "weight", 0.1, 0.01)],
        ... )
        >>> [(node.path, node.held, node.trained) for node in tree.children]
        [('trunk', 1, 0), ('head', 0, 1)]
        >>> tree.children[0].children[0].leaves[0].name
        'running_mean'
    """
    root = _Branch("", "")
    unplaced = {row.path: row for row in moved}
    for entry in held:
        row = unplaced.pop(entry.path, None)
        _place(
            root,
            entry.path,
            entry.kind,
            entry.role,
            # A row that says how far it moved outweighs a flag that says it did not.
            fate="held" if entry.equal and row is None else "moved",
            before=entry.before,
            after=entry.after,
            row=row,
        )
    for row in unplaced.values():
        _place(root, row.path, row.kind, row.role, fate="moved", row=row)
    for row in trained:
        _place(root, row.path, row.kind, row.role, fate="trained", row=row)
    return root.close()


@dataclass
class _Branch:
    """A module while the tree grows."""

    name: str
    path: str
    leaves: list[Leaf] = field(default_factory=list[Leaf])
    below: dict[str, _Branch] = field(default_factory=dict[str, "_Branch"])

    def close(self) -> Node:
        children = tuple(branch.close() for branch in self.below.values())
        fates = [leaf.fate for leaf in self.leaves]
        return Node(
            self.name,
            self.path,
            tuple(self.leaves),
            children,
            held=fates.count("held") + sum(child.held for child in children),
            moved=fates.count("moved") + sum(child.moved for child in children),
            trained=fates.count("trained") + sum(child.trained for child in children),
        )


def _place(
    root: _Branch,
    path: str,
    kind: str,
    role: str,
    *,
    fate: str,
    before: str = "",
    after: str = "",
    row: MovedEntry | None,
) -> None:
    parts = path.split(".")
    # ``bn.weight.requires_grad`` is a flag of ``bn``'s weight: there is no module ``bn.weight``.
    own = 2 if kind == "requires_grad" and len(parts) > 1 and parts[-1] == "requires_grad" else 1
    modules, name = parts[:-own], ".".join(parts[-own:])
    if len(modules) > DEEPEST:
        modules = [*modules[: DEEPEST - 1], ".".join(modules[DEEPEST - 1 :])]
    branch = root
    for part in modules:
        if part not in branch.below:
            branch.below[part] = _Branch(part, f"{branch.path}.{part}" if branch is not root else part)
        branch = branch.below[part]
    sizes = (row.max_abs, row.mean_abs) if row else (None, None)
    branch.leaves.append(Leaf(name, path, kind, role, fate, before, after, *sizes))
