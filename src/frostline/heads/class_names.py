"""Classes as a number or by their names, and where their rows lie in a head."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from frostline.errors import ModelError, name_some, printable


def read_classes(classes: int | Sequence[str], asked: str) -> tuple[int, tuple[str, ...] | None]:
    """How many classes were meant, and their names if they have any.

    Args:
        classes: a number, or distinct names.
        asked: the call, for the error.

    Raises:
        ModelError: there is no class, or the names are not distinct strings.

    Example:
        >>> read_classes(3, "a doctest"), read_classes(["cat", "dog"], "a doctest")
        ((3, None), (2, ('cat', 'dog')))
    """
    if isinstance(classes, Sequence):
        named = read_names(classes, "classes", asked)
        return len(named), named
    try:
        count = operator.index(classes)
    except TypeError:
        count = 0
    if count < 1 or isinstance(classes, bool):
        raise ModelError(
            f"{asked}: classes={classes!r} is no number of classes\n"
            "  fix: how many there are, at least 1, or their names in the order of the outputs"
        )
    return count, None


def read_names(names: Sequence[str], argument: str, asked: str) -> tuple[str, ...]:
    """The names as a tuple of distinct strings that are not empty.

    Raises:
        ModelError: they are something else; the message names those that are.

    Example:
        >>> read_names(["cat", "dog"], "classes", "a doctest")
        ('cat', 'dog')
    """
    given: Any = names
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence) or not given:
        raise ModelError(
            f"{asked}: {argument}={printable(repr(given))} are no names of classes\n"
            "  fix: a list of distinct names, in the order of the outputs"
        )
    found: list[Any] = list(given)
    wrong = [printable(repr(name)) for name in found if not isinstance(name, str) or not name]
    if wrong:
        raise ModelError(
            f"{asked}: {argument} are names\n  found: {name_some(wrong)}\n  fix: a string that is not empty for each"
        )
    twice = [name for name in dict.fromkeys(found) if found.count(name) > 1] if len(set(found)) < len(found) else []
    if twice:
        raise ModelError(f"{asked}: {argument} has {name_some(twice)} more than once\n  fix: one name for each output")
    return tuple(found)


def rows_kept(old: Sequence[str], new: Sequence[str], groups: int) -> tuple[int, ...]:
    """For each row of the old head, in order, its row in the new one; class by class within each group.

    Example:
        >>> rows_kept(["cat", "dog"], ["ant", "cat", "dog"], groups=2)
        (1, 2, 4, 5)
    """
    place = {name: i for i, name in enumerate(new)}
    return tuple(group * len(new) + place[name] for group in range(groups) for name in old)
