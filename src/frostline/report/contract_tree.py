"""The module tree of a loop that was watched: what was meant to happen to every tensor against what did.

Modules next to each other that are alike in all that the tree shows become one row, and so do tensors of a module: a
page of 100,000 tensors stays one that a browser opens. What still does not fit is left out from the bottom, what
contradicts the contract last, and counted where it would stand. Pure Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from frostline.report.contract_lines import STATES, ModuleLine, TensorLine
from frostline.report.module_tree import DEEPEST

# So many modules next to each other that are alike become one row.
_ALIKE = 3
# Browsers lay out this many rows in a fraction of a second.
MOST_ROWS = 3_000
_MOST_LEAVES = 48
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class TreeLeaf:
    """Tensors of one module that are alike.

    Attributes:
        names: the last parts of their paths.
        state: a key of :data:`STATES`.
        why: why they must stay.
        detail: what is known of the one that moved most.
        codes: the codes of findings that name them.
        count: how many tensors they are, with those of all modules that this row stands for.
    """

    names: tuple[str, ...]
    state: str
    why: str
    detail: str
    codes: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class TreeNode:
    """One module, or several next to each other that are alike, with all below.

    Attributes:
        names: the last parts of the paths that it stands for.
        type: the class name.
        mode: ``train`` or ``eval``; empty where it is not known.
        must_eval: why it was to stay in eval mode.
        codes: the codes of findings that name it.
        leaves: its own tensors.
        children: the modules right below.
        states: how many tensors here and below are in each state, for all modules that it stands for.
        modules: how many modules it stands for, with those below.
        hidden_leaves: tensors of its own that are not shown.
        hidden_modules: modules right below and under those that are not shown.
        hidden_tensors: the tensors in them.
    """

    names: tuple[str, ...]
    type: str
    mode: str
    must_eval: str
    codes: tuple[str, ...]
    leaves: tuple[TreeLeaf, ...]
    children: tuple[TreeNode, ...]
    states: dict[str, int]
    modules: int
    hidden_leaves: int = 0
    hidden_modules: int = 0
    hidden_tensors: int = 0

    @property
    def name(self) -> str:
        """The names in short.

        Example:
            >>> alike = [TensorLine(f"b{i}.w", f"b{i}", "weight", "train", True) for i in range(4)]
            >>> grow_contract_tree(alike).children[0].name
            'b0 … b3'
        """
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} … {self.names[-1]}"

    @property
    def broken(self) -> int:
        """How many tensors here and below moved though they were to stay."""
        return self.states.get("broken", 0)

    @property
    def total(self) -> int:
        """How many tensors are here and below."""
        return sum(self.states.values())

    @property
    def against(self) -> bool:
        """Whether it was to stay in eval mode and did not."""
        return bool(self.must_eval) and self.mode == "train"

    @property
    def marked(self) -> bool:
        """Whether anything here or below contradicts what was meant, or is named by a finding."""
        return (
            bool(self.broken or self.codes) or any(x.codes for x in self.leaves) or any(c.marked for c in self.children)
        )


def grow_contract_tree(
    tensors: Iterable[TensorLine], modules: Iterable[ModuleLine] = (), most: int = MOST_ROWS
) -> TreeNode:
    """Arrange tensors under their modules, and fold what is alike.

    Args:
        tensors: in the order of the model.
        modules: what is known of the modules; one that no tensor lies below is left out, unless a finding names it.
        most: how many rows of modules at most.

    Returns:
        The model; what does not fit is counted where it would stand.

    Example:
        >>> tree = grow_contract_tree([
        ...     TensorLine("trunk.bn.weight", "trunk.bn", "norm.weight", "stay", moved=False),
        ...     TensorLine("trunk.bn.running_mean", "trunk.bn", "norm.mean", "stay", moved=True),
        ...     TensorLine("head.weight", "head", "weight", "train", moved=True),
        ... ])
        >>> tree.states
        {'broken': 1, 'held': 1, 'trained': 1}
    """
    root = _Branch("")
    for module in modules:
        _branch(root, module.path).line = module
    for tensor in tensors:
        owner = tensor.module
        name = tensor.path[len(owner) + 1 :] if owner and tensor.path.startswith(f"{owner}.") else tensor.path
        _branch(root, owner).tensors.append((name, tensor))
    _drop_empty(root)
    _sign(root, {})
    tree = _build([root])
    return _prune(tree, most)


@dataclass
class _Branch:
    """A module while the tree grows."""

    name: str
    line: ModuleLine | None = None
    tensors: list[tuple[str, TensorLine]] = field(default_factory=list[tuple[str, TensorLine]])
    below: dict[str, _Branch] = field(default_factory=dict[str, "_Branch"])
    signature: int = 0


def _branch(root: _Branch, path: str) -> _Branch:
    parts = path.split(".") if path else []
    if len(parts) > DEEPEST:
        parts = [*parts[: DEEPEST - 1], ".".join(parts[DEEPEST - 1 :])]
    branch = root
    for part in parts:
        branch = branch.below.setdefault(part, _Branch(part))
    return branch


def _drop_empty(branch: _Branch) -> bool:
    """Leave out modules that have nothing to show; tells whether this one has."""
    branch.below = {name: child for name, child in branch.below.items() if _drop_empty(child)}
    return bool(branch.tensors or branch.below or (branch.line and branch.line.codes))


def _sign(branch: _Branch, known: dict[tuple[object, ...], int]) -> None:
    """Give equal numbers to modules that look alike in all that the tree shows, but for their names."""
    for child in branch.below.values():
        _sign(child, known)
    line = branch.line
    looks = (
        (line.type, line.mode, line.must_eval, line.codes) if line else (),
        tuple((name, t.role, t.state, t.why, t.codes) for name, t in branch.tensors),
        tuple((child.name, child.signature) for child in branch.below.values()),
    )
    branch.signature = known.setdefault(looks, len(known))


def _build(alike: Sequence[_Branch]) -> TreeNode:
    """One row for modules that are alike."""
    first = alike[0]
    states: dict[str, int] = dict.fromkeys(STATES, 0)
    rows = [branch.tensors for branch in alike]
    for _, tensor in first.tensors:
        states[tensor.state] += len(alike)
    children: list[TreeNode] = []
    for run in _runs(list(first.below)):
        # Their names agree in all of them, because they look alike.
        for part in _alike(first, run):
            children.append(_build([branch.below[name] for name in part for branch in alike]))
    for child in children:
        for state, count in child.states.items():
            states[state] += count
    leaves = _leaves(rows)
    shown = leaves[:_MOST_LEAVES]
    line = first.line
    return TreeNode(
        names=tuple(dict.fromkeys(branch.name for branch in alike)),
        type=line.type if line else "",
        mode=line.mode if line else "",
        must_eval=line.must_eval if line else "",
        codes=line.codes if line else (),
        leaves=tuple(shown),
        children=tuple(children),
        states={state: count for state, count in states.items() if count},
        modules=len(alike) + sum(child.modules for child in children),
        hidden_leaves=sum(leaf.count for leaf in leaves[_MOST_LEAVES:]),
    )


def _runs(names: list[str]) -> list[list[str]]:
    """Names next to each other that differ in their numbers only."""
    found: list[list[str]] = []
    for name in names:
        if found and _DIGITS.search(name) and _DIGITS.sub("0", name) == _DIGITS.sub("0", found[-1][-1]):
            found[-1].append(name)
        else:
            found.append([name])
    return found


def _alike(branch: _Branch, run: list[str]) -> list[list[str]]:
    """A run of names, parted where the modules do not look alike, or are too few to be folded."""
    parts: list[list[str]] = []
    for name in run:
        if parts and branch.below[parts[-1][-1]].signature == branch.below[name].signature:
            parts[-1].append(name)
        else:
            parts.append([name])
    return [piece for part in parts for piece in ([part] if len(part) >= _ALIKE else [[name] for name in part])]


def _leaves(rows: Sequence[Sequence[tuple[str, TensorLine]]]) -> list[TreeLeaf]:
    """The tensors of modules that are alike, those in the same state as one; what moved against the contract first."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, (_, tensor) in enumerate(rows[0]):
        groups.setdefault((tensor.state, tensor.why, tensor.codes), []).append(place)
    found: list[TreeLeaf] = []
    for places in groups.values():
        first = rows[0][places[0]][1]
        members = [row[place][1] for row in rows for place in places]
        worst = first if len(members) == 1 else max(members, key=_telling)
        found.append(
            TreeLeaf(
                names=tuple(rows[0][place][0] for place in places),
                state=first.state,
                why=first.why,
                detail=worst.detail,
                codes=first.codes,
                count=len(places) * len(rows),
            )
        )
    return sorted(found, key=lambda leaf: leaf.state != "broken")


def _telling(tensor: TensorLine) -> tuple[bool, float, int]:
    """Which of several tensors says most; that a counter counted says little."""
    return (tensor.role != "norm.count", tensor.size, len(tensor.detail))


def _prune(tree: TreeNode, most: int) -> TreeNode:
    """The tree with at most so many rows; what is marked stays longest, then what lies higher."""
    order: list[tuple[bool, int, int]] = []

    def number(node: TreeNode, depth: int) -> None:
        order.append((not node.marked, depth, len(order)))
        for child in node.children:
            number(child, depth + 1)

    number(tree, 0)
    if len(order) <= most:
        return tree
    # A module above one that stays is at least as marked and lies higher, so it stays too.
    kept = {place for _, _, place in sorted(order)[:most]}
    place = -1

    def cut(node: TreeNode) -> tuple[TreeNode, bool]:
        nonlocal place
        place += 1
        stays = place in kept
        pairs = [cut(child) for child in node.children]
        gone = [child for child, child_stays in pairs if not child_stays]
        return (
            replace(
                node,
                children=tuple(child for child, child_stays in pairs if child_stays),
                hidden_modules=sum(child.modules for child in gone),
                hidden_tensors=sum(child.total for child in gone),
            ),
            stays,
        )

    return cut(tree)[0]
