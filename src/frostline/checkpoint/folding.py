"""Many names in a few lines: the tensors of a module together, and modules that differ only in numbers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.errors import printable
from frostline.state.names import fold, join, parent

_MOST_LEAVES = 5


@dataclass(frozen=True)
class Together:
    """Names that are written as one.

    Attributes:
        text: what stands for them, with control characters written out.
        names: what it stands for, in the order given.
    """

    text: str
    names: tuple[str, ...]


def fold_modules(names: Sequence[str]) -> list[Together]:
    """Group names by module, and modules by number; the groups keep the order of their first members.

    Example:
        >>> names = ["bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias", "fc.weight"]
        >>> [together.text for together in fold_modules(names)]
        ['bn[1-2].{weight,bias} (4)', 'fc.weight']
    """
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(parent(name), []).append(name)
    alike: dict[tuple[str, ...], list[str]] = {}
    for path, own in modules.items():
        alike.setdefault(tuple(name.rpartition(".")[2] for name in own), []).append(path)
    result: list[Together] = []
    for own, paths in alike.items():
        for folded in fold(paths):
            members = tuple(name for path in folded.paths for name in modules[path])
            shown = ",".join(own[:_MOST_LEAVES]) + (",..." if len(own) > _MOST_LEAVES else "")
            text = join(folded.pattern, shown if len(own) == 1 else f"{{{shown}}}")
            result.append(Together(printable(text if len(members) == 1 else f"{text} ({len(members)})"), members))
    return result
