"""One beginning that stands in front of all names on one side: ``backbone.`` in the checkpoint, or in the model.

Knows names and shapes only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from frostline.state.names import parent

# Another beginning that would serve nearly as many entries is as good an explanation.
_AS_GOOD = 0.9


@dataclass(frozen=True)
class Prefix:
    """A beginning, and what it explains.

    Attributes:
        pairs: name in the checkpoint to name in the model.
        why: which it is, in words.
        tied: another beginning would do as well.
        rivals: names in the checkpoint that the others would take instead.
    """

    pairs: Mapping[str, str]
    why: str
    tied: bool = False
    rivals: frozenset[str] = frozenset()


def find_prefix(source: Mapping[str, tuple[int, ...]], target: Mapping[str, tuple[int, ...]]) -> Prefix | None:
    """Find the beginning that makes most names of one side names of the other, with their shapes.

    It has to explain at least half of one side, and whole modules: an accident explains a bias here and there.

    Example:
        >>> found = find_prefix({"enc.fc.weight": (2, 3), "queue": (9,)}, {"fc.weight": (2, 3)})
        >>> found.pairs, found.why
        ({'enc.fc.weight': 'fc.weight'}, "'enc.' in front of names in the checkpoint")
    """
    inside = _beginnings(source, target)
    outside = _beginnings(target, source)
    best_inside, best_outside = (
        max((len(pairs) for pairs in found.values()), default=0) for found in (inside, outside)
    )
    best = max(best_inside, best_outside)
    if 2 * best < min(len(source), len(target)) or best == 0:
        return None
    found, where = (inside, "checkpoint") if best_inside >= best_outside else (outside, "model")
    good = {prefix: pairs for prefix, pairs in found.items() if len(pairs) >= _AS_GOOD * best}
    prefix, pairs = next((p, pairs) for p, pairs in good.items() if len(pairs) == best)
    # Beginnings for other entries are no rivals: they explain something else.
    served = set(pairs.values())
    rivals = {p: other for p, other in good.items() if p != prefix and not served.isdisjoint(other.values())}
    said = " and ".join(repr(p) for p in (prefix, *rivals))
    return Prefix(
        pairs=pairs if found is inside else {short: long for long, short in pairs.items()},
        why=f"{said} in front of names in the {where}{' fit alike' if rivals else ''}",
        tied=bool(rivals),
        rivals=frozenset(name for other in rivals.values() for name in other) if found is inside else frozenset(),
    )


def _beginnings(
    longer: Mapping[str, tuple[int, ...]], shorter: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, str]]:
    """By beginning, the longer names that are shorter names of the same shape behind it, modules whole."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name, shape in longer.items():
        position = name.find(".")
        while position >= 0:
            rest = name[position + 1 :]
            if shorter.get(rest) == shape:
                found[name[: position + 1]][name] = rest
            position = name.find(".", position + 1)
    sizes = Counter(map(parent, longer)), Counter(map(parent, shorter))
    return {prefix: _whole(pairs, *sizes) for prefix, pairs in found.items()}


def _whole(pairs: Mapping[str, str], in_longer: Counter[str], in_shorter: Counter[str]) -> dict[str, str]:
    """Those whose module has all of its entries among them, on one side at least."""
    matched = Counter(map(parent, pairs))
    return {
        long: short
        for long, short in pairs.items()
        if matched[parent(long)] in {in_longer[parent(long)], in_shorter[parent(short)]}
    }
