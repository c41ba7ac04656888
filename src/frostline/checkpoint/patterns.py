"""Patterns on names: which ones are meant, and the fewest that mean some names and no others.

Knows strings only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from frostline.errors import CheckpointError, name_some
from frostline.state.names import matches, nearest

_SPECIAL = re.compile(r"[*?[]")


def read_patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    """One pattern or several, as a tuple."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def is_meant(name: str, pattern: str) -> bool:
    """Whether a glob matches a name, or a module above it.

    Example:
        >>> is_meant("fc.weight", "fc"), is_meant("fc2.weight", "fc"), is_meant("a.fc.bias", "*.fc")
        (True, False, True)
    """
    parts = name.split(".")
    return any(matches(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def meant_by(names: Iterable[str], patterns: Sequence[str], *, argument: str, where: str) -> set[str]:
    """The names that any pattern means.

    Raises:
        CheckpointError: a pattern means none of them.
    """
    known = list(names)
    found: set[str] = set()
    for pattern in patterns:
        some = {name for name in known if is_meant(name, pattern)}
        if not some:
            raise CheckpointError(
                f"{argument}={pattern!r} matches none of {len(known)} names in {where}\n"
                f"  nearest names: {name_some(nearest(pattern, known) or known) or 'none'}\n"
                f"  fix: a pattern that matches, or leave it away"
            )
        found |= some
    return found


def covering(wanted: Collection[str], others: Collection[str]) -> list[str]:
    """The fewest patterns that mean all of some names and none of others.

    Example:
        >>> covering(["fc.weight", "fc.bias"], ["conv.weight"])
        ['fc']
        >>> covering(["a.bn.num_batches_tracked", "b.bn.num_batches_tracked"], ["a.bn.weight", "b.bn.weight"])
        ['*.num_batches_tracked']
        >>> covering(["a.weight"], [])
        ['*']
    """
    if not others:
        return ["*"] if wanted else []
    leaves = {name.rpartition(".")[2] for name in wanted}
    for leaf in sorted(leaves):
        pattern = f"*.{_literal(leaf)}"
        some = [name for name in wanted if is_meant(name, pattern)]
        if len(leaves) == 1 and len(some) == len(wanted) > 1 and not any(is_meant(name, pattern) for name in others):
            return [pattern]
    above = {".".join(name.split(".")[:n]) for name in others for n in range(1, name.count(".") + 2)}
    found: dict[str, None] = {}
    for name in wanted:
        parts = name.split(".")
        tops = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        found[next((top for top in tops if top not in above), name)] = None
    return [_literal(top) for top in found]


def _literal(text: str) -> str:
    """A glob that means this text: what is special stands in brackets."""
    return _SPECIAL.sub(r"[\g<0>]", text)
