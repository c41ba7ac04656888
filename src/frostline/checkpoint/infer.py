"""Which module of a checkpoint is which module of a model, where names differ and the structure agrees.

The unit is the module with all its tensors. Evidence is, in this order: shapes, the place among modules of the same
kind (ranks of numbers in paths), words, and the neighbours in the order of registration. That order alone is never
evidence enough to tell two modules of the same shapes apart: such pairs are `tied`. So are pairs for which numbers and
order contradict each other. Knows names and shapes; knows nothing of values or live models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from frostline.checkpoint.coordinates import Coordinates, coordinates_of, likeness
from frostline.checkpoint.units import Unit

# A file of an old torch has no counters.
_OPTIONAL = frozenset({"count"})
_NOTHING = (-1.0, 0)
# What one of two says nothing about: less than any word in common, more than other words.
_SILENT = 0.1
_Signature = tuple[tuple[str, tuple[int, ...]], ...]
_Ranks = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Match:
    """A module of the checkpoint for a module of the model.

    Attributes:
        source: path in the checkpoint.
        target: path in the model.
        tied: another assignment is as good, or evidence contradicts itself.
        why: the evidence, in words.
    """

    source: str
    target: str
    tied: bool
    why: str


def infer(source: Mapping[str, Unit], target: Mapping[str, Unit], *, ordered: bool = True) -> list[Match]:
    """Assign modules to modules.

    Args:
        source: modules of the checkpoint, in its order.
        target: modules of the model, in its order.
        ordered: whether the checkpoint's order is that in which its model registered its modules; files that sort
            names have none.

    Returns:
        At most one match for each module of either side, in the order of the model.

    Example:
        >>> from frostline.checkpoint.units import units_of
        >>> old = units_of({"conv1.weight": (4, 3, 3, 3), "conv2.weight": (4, 4, 3, 3), "fc.weight": (2, 4)})
        >>> new = units_of({"a.0.weight": (4, 3, 3, 3), "a.1.weight": (4, 4, 3, 3), "head.weight": (2, 4)})
        >>> [(match.source, match.target, match.tied) for match in infer(old, new)]
        [('conv1', 'a.0', False), ('conv2', 'a.1', False), ('fc', 'head', False)]
    """
    return _Assignment(source, target, ordered).run()


class _Assignment:
    """One assignment in the making."""

    def __init__(self, source: Mapping[str, Unit], target: Mapping[str, Unit], ordered: bool) -> None:
        self.source, self.target, self.ordered = source, target, ordered
        here, there = coordinates_of(source), coordinates_of(target)
        self.source_places, self.target_places = _without_prefix(here, there), _without_prefix(there, here)
        self.signatures = {("s", path): _signature(unit) for path, unit in source.items()}
        self.signatures |= {("t", path): _signature(unit) for path, unit in target.items()}
        self.sizes = Counter((side, signature) for (side, _), signature in self.signatures.items())
        # What stands where, by the words in its path.
        self.by_words: dict[str, dict[frozenset[str], Counter[object]]] = {"s": {}, "t": {}}
        for side, places in (("s", self.source_places), ("t", self.target_places)):
            for path, place in places.items():
                known = self.by_words[side].setdefault(place.words, Counter())
                known[self.signatures[side, path], place.ranks] += 1
        self.next_to_source, self.next_to_target = _neighbours(source), _neighbours(target)
        self.found: dict[str, Match] = {}  # by source
        self.taken: set[str] = set()  # of the target

    def run(self) -> list[Match]:
        groups = self._groups()
        # What words say first, and then what neighbours say: that is no more than a guess.
        for by_words in (True, False):
            progress = True
            while progress:
                progress = False
                for sources, targets in groups:
                    progress |= self._decide(sources, targets, by_words)
        self._decide_lone()
        self._tie_beside_leftovers()
        self._tie_what_is_left(groups)
        self._tie_contradictions()
        return sorted(self.found.values(), key=lambda match: self.target[match.target].order)

    def _groups(self) -> list[tuple[list[str], list[str]]]:
        """Modules of both sides with the same shapes at the same place."""
        groups: dict[tuple[_Signature, _Ranks], tuple[list[str], list[str]]] = {}
        for side, places in enumerate((self.source_places, self.target_places)):
            for path, place in places.items():
                key = (self.signatures["st"[side], path], place.ranks)
                groups.setdefault(key, ([], []))[side].append(path)
        return [group for group in groups.values() if group[0] and group[1]]

    def _decide(self, sources: list[str], targets: list[str], by_words: bool) -> bool:
        """Match pairs that are each other's best by a clear margin; whether there were any."""
        free_sources = [path for path in sources if path not in self.found]
        free_targets = [path for path in targets if path not in self.taken]
        if not free_sources or not free_targets:
            return False
        crowded = len(sources) > 1 and len(targets) > 1
        common = self._common_words(sources, targets) if crowded else None
        scores = {s: {t: self._score(s, t, by_words, common) for t in free_targets} for s in free_sources}
        best_of_target = {t: sorted((scores[s][t] for s in free_sources), reverse=True) for t in free_targets}
        chosen: list[tuple[str, str]] = []
        for s, row in scores.items():
            best_of_source = sorted(row.values(), reverse=True)
            for t, score in row.items():
                clear = all(
                    score == best[0] > (best[1:] or [_NOTHING])[0] for best in (best_of_source, best_of_target[t])
                )
                if clear and sum(score):
                    chosen.append((s, t))
        for s, t in chosen:
            self._match(s, t, self._evidence(s, t), tied=not by_words)
        return bool(chosen)

    def _common_words(self, sources: list[str], targets: list[str]) -> frozenset[str]:
        """The words that all of them have: they tell none from another."""
        words = [self.source_places[path].words for path in sources]
        words += [self.target_places[path].words for path in targets]
        return frozenset.intersection(*words)

    def _score(self, s: str, t: str, by_words: bool, common: frozenset[str] | None) -> tuple[float, int]:
        """Likeness of words, then how many neighbours, or modules renamed by the same words, speak for a pair.

        Where several stand on both sides (``common`` are the words of all), what two of them do not say makes them no
        pair.
        """
        mine, theirs = self.source_places[s].words, self.target_places[t].words
        if common is None:
            return likeness(mine, theirs), self._support(s, t, by_words) + self._is_substitution(mine, theirs)
        mine, theirs = mine - common, theirs - common
        return (likeness(mine, theirs) if mine and theirs else _SILENT), self._support(s, t, by_words)

    def _support(self, s: str, t: str, by_words: bool) -> int:
        return sum(
            s_next in self.found and self.found[s_next].target == t_next
            for s_next, t_next in zip(self.next_to_source[s], self.next_to_target[t], strict=True)
            if s_next is not None and t_next is not None and self.ordered and not by_words
        )

    def _is_substitution(self, mine: frozenset[str], theirs: frozenset[str]) -> bool:
        """Whether the modules with these words stand at the very places of those with the others, and are several."""
        if not mine or not theirs or mine & theirs:
            return False
        ours = self.by_words["s"][mine]
        return sum(ours.values()) > 1 and ours == self.by_words["t"][theirs]

    def _decide_lone(self) -> None:
        """Shapes that only one module of either side has need no place, but something that speaks for them."""
        lone = {
            signature: path
            for (side, path), signature in self.signatures.items()
            if side == "t" and self.sizes["s", signature] == self.sizes["t", signature] == 1
        }
        for path in self.source:
            t = lone.get(self.signatures["s", path])
            if t is not None and path not in self.found and t not in self.taken:
                score = self._score(path, t, by_words=False, common=None)
                self._match(path, t, "the only ones of these shapes", tied=not score[0] + score[1])

    def _tie_what_is_left(self, groups: Iterable[tuple[list[str], list[str]]]) -> None:
        for sources, targets in groups:
            left = [path for path in sources if path not in self.found]
            open_targets = [path for path in targets if path not in self.taken]
            if len(left) != len(open_targets):
                continue  # which of them has no counterpart is anyone's guess
            why = (
                "names have nothing in common"
                if len(left) == 1
                else f"{len(left)} modules of these shapes at this place, in the order of registration"
            )
            for s, t in zip(left, open_targets, strict=True):
                self._match(s, t, why, tied=True)

    def _tie_contradictions(self) -> None:
        """Pairs that differ in nothing but numbers have to come in one order on both sides."""
        alike: dict[object, list[Match]] = defaultdict(list)
        for match in self.found.values():
            mine, theirs = self.source_places[match.source], self.target_places[match.target]
            if mine.ranks:
                alike[self.signatures["s", match.source], mine.words, theirs.words].append(match)
        for matches in alike.values():
            in_order = sorted(matches, key=lambda match: self._source_key(match.source))
            orders = [self.target[match.target].order for match in in_order]
            smallest_behind = _running_minimum(orders)
            largest = -1
            for match, order, behind in zip(in_order, orders, smallest_behind, strict=True):
                if order < largest or order > behind:
                    why = "numbers in names and the order of registration contradict each other"
                    self.found[match.source] = Match(match.source, match.target, True, why)
                largest = max(largest, order)

    def _tie_beside_leftovers(self) -> None:
        """Pairs of shapes that are left over on both sides, or for which a better partner is left over, are a guess."""
        sure = [match for match in self.found.values() if not match.tied]
        left_sources: dict[_Signature, list[str]] = defaultdict(list)
        left_targets: dict[_Signature, list[str]] = defaultdict(list)
        for path in self.source.keys() - {match.source for match in sure}:
            left_sources[self.signatures["s", path]].append(path)
        for path in self.target.keys() - {match.target for match in sure}:
            left_targets[self.signatures["t", path]].append(path)
        for match in sure:
            signature = self.signatures["s", match.source]
            sources, targets = left_sources[signature], left_targets[signature]
            score = self._likeness(match.source, match.target)
            why = ""
            if sources and targets:
                why = "modules of these shapes are left over on both sides"
            elif score < 1 and (
                any(self._likeness(path, match.target) >= score for path in sources)
                or any(self._likeness(match.source, path) >= score for path in targets)
            ):
                why = "words speak as much for another one at another place"
            if why:
                self.found[match.source] = Match(match.source, match.target, True, why)

    def _likeness(self, s: str, t: str) -> float:
        return likeness(self.source_places[s].words, self.target_places[t].words)

    def _source_key(self, path: str) -> tuple[int, ...]:
        """The order of registration; without one, that of the numbers in names."""
        ranks = tuple(rank for rank, _ in self.source_places[path].ranks)
        return (self.source[path].order,) if self.ordered else ranks

    def _match(self, s: str, t: str, why: str, *, tied: bool = False) -> None:
        self.found[s] = Match(s, t, tied, why)
        self.taken.add(t)

    def _evidence(self, s: str, t: str) -> str:
        mine, theirs = self.source_places[s], self.target_places[t]
        said = ["same shapes"]
        if mine.ranks:
            said.append("same place " + ".".join(f"{rank + 1}/{of}" for rank, of in mine.ranks))
        common = mine.words & theirs.words
        if common:
            said.append(f"both {', '.join(sorted(common))}")
        return ", ".join(said)


def _signature(unit: Unit) -> _Signature:
    return tuple(sorted((role, shape) for role, shape in unit.shapes.items() if role not in _OPTIONAL))


def _without_prefix(places: Mapping[str, Coordinates], others: Mapping[str, Coordinates]) -> dict[str, Coordinates]:
    """Without the words that all modules of one side have and none of the other: a prefix tells none from another."""
    known = frozenset(word for place in others.values() for word in place.words)
    prefix = frozenset.intersection(*(place.words for place in places.values())) - known if places else known
    return {path: replace(place, words=place.words - prefix) for path, place in places.items()}


def _neighbours(units: Mapping[str, Unit]) -> dict[str, tuple[str | None, str | None]]:
    """The modules registered just before and just after each."""
    paths: list[str | None] = [None, *units, None]
    return {path: (paths[i], paths[i + 2]) for i, path in enumerate(units)}


def _running_minimum(values: list[int]) -> list[int]:
    """For each the smallest of those behind it; itself, where there are none."""
    result = list(values)
    smallest = values[-1] if values else 0
    for index in range(len(values) - 1, -1, -1):
        result[index] = smallest if index < len(values) - 1 else values[index]
        smallest = min(smallest, values[index])
    return result
