"""Depths as timm's models tell them: ``group_matcher`` gives regular expressions for stem and blocks.

What the expressions miss is not the head by that alone, as timm has it: a last convolution or norm of the trunk counts
with the last block. And where they give one depth to blocks of two rows, one of which runs behind the other (CaiT's
class attention), they are not used.

Source: ``timm.models._manipulate.group_with_matcher``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from torch import nn

from frostline.optim.blocks import block_of
from frostline.state import names

# Appended by models to a key: "counts with the one before it".
_WITH_THE_ONE_BEFORE = 99999.0
_Key = tuple[float, ...]


def depths_by_matcher(model: nn.Module) -> dict[str, int] | None:
    """The depth of each parameter, as the model itself tells it.

    Args:
        model: the model, without wrappers.

    Returns:
        Path of each parameter to its depth; nothing if the model does not tell, or tells what cannot be.

    Example:
        >>> class Net(nn.Sequential):
        ...     def group_matcher(self, coarse=False):
        ...         return {"stem": "^0", "blocks": [(r"^([12])", None), ("^3", (99999,))]}
        >>> depths_by_matcher(Net(*(nn.Linear(1, 1, bias=False) for _ in range(4))))
        {'0.weight': 0, '1.weight': 1, '2.weight': 2, '3.weight': 2}
    """
    ask: Any = getattr(model, "group_matcher", None)
    if not callable(ask):
        return None
    try:
        key_of = _reader(ask(coarse=False))
    except (TypeError, NotImplementedError, AssertionError):
        return None
    keys = {name: key_of(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    numbers: dict[_Key, int] = {}
    for key in sorted(set(filter(None, keys.values()))):
        joins = bool(numbers) and key[-1] == _WITH_THE_ONE_BEFORE
        numbers[key] = max(numbers.values(), default=-1) + (not joins)
    depths: dict[str, int] = {}
    last = 0
    for name, key in keys.items():
        if key:
            last = max(last, numbers[key])
        depths[name] = numbers[key] if key else last
    return depths if numbers and not _rows_collide(model, depths) else None


def _rows_collide(model: nn.Module, depths: dict[str, int]) -> bool:
    """Whether two rows that go through several depths share one. A row within one depth is a branch of a block.

    Blocks of attention, that is: patch embeddings count with a block.
    """
    rows: dict[str, set[int]] = {}
    for path, depth in {(block.path, depths[name]) for name, block in block_of(model).items() if block.repeated}:
        if _has_parts_with_parts(model.get_submodule(path)):
            rows.setdefault(names.parent(path), set()).add(depth)
    long = [depths_of_row for depths_of_row in rows.values() if len(depths_of_row) > 1]
    return len(set().union(*long)) < sum(map(len, long))


def _has_parts_with_parts(module: nn.Module) -> bool:
    return any(next(part.children(), None) is not None for part in module.children() if type(part) is not nn.Sequential)


def _reader(matcher: Any) -> Callable[[str], _Key]:
    """A name's key, by which blocks are sorted; empty where nothing matches."""
    if callable(matcher):

        def by_call(name: str) -> _Key:
            found: Any = matcher(name)
            if found is None:
                return ()
            return tuple(map(float, found)) if isinstance(found, Iterable) else (float(found),)

        return by_call
    rules: list[tuple[re.Pattern[str], float, tuple[float, ...]]] = []
    for number, given in enumerate(matcher.values()):
        for pattern, suffix in given if isinstance(given, (list, tuple)) else [(given, None)]:
            if pattern is not None:
                rules.append((re.compile(pattern), float(number), tuple(map(float, suffix or ()))))

    def by_rules(name: str) -> _Key:
        for pattern, number, suffix in rules:
            match = pattern.match(name)
            if match:
                groups = (float(text) for text in match.groups() if text is not None)
                return tuple(chain((number,), groups, suffix))
        return ()

    return by_rules
