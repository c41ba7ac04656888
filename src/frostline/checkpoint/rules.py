r"""Renaming as data: which names of a checkpoint become which names of a model.

Three kinds of rules, each from the beginning of a name:

- a template of whole parts, ``"layer{n}.conv{m}" -> "stages.{n-1}.conv{m}"``: ``{n}`` stands for a number, ``*`` for
  anything without a dot, and what follows in the name follows in the new one;
- a prefix, ``"backbone." -> ""`` or ``"" -> "backbone."``: the left side is empty or ends with a dot;
- a regular expression, ``(re.compile(r"\.gamma$"), ".weight")``, searched anywhere and replaced as by ``re.sub``.

Knows names; knows nothing of files or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from frostline.errors import CheckpointError, name_some, printable
from frostline.state.names import nearest

Left: TypeAlias = "str | re.Pattern[str]"
Renames: TypeAlias = "str | Rename | Mapping[Left, str | Sequence[str]] | Iterable[str | Rename | tuple[Left, str]]"
_PLACE = re.compile(r"\{([A-Za-z_]\w*)(?:([+-])(\d+))?\}|(\*)")


@dataclass(frozen=True)
class Rename:
    """One rule.

    Attributes:
        left: what it matches.
        right: what the match becomes; several for one tensor that goes to several places.
        regex: whether ``left`` is a regular expression.
    """

    left: str
    right: tuple[str, ...]
    regex: bool = False

    def __post_init__(self) -> None:
        pattern = self._pattern()
        for right in self.right:
            if self.regex:
                self._check_right(pattern, right)
                continue
            unknown = [m[1] for m in _PLACE.finditer(right) if m[1] and m[1] not in pattern.groupindex]
            if unknown:
                raise CheckpointError(
                    f"rename {self}: the right side has {{{unknown[0]}}}, the left side has not\n"
                    "  fix: name the same numbers on both sides"
                )
            if right.count("*") > self.left.count("*"):
                raise CheckpointError(f"rename {self}: more * on the right than on the left\n  fix: as many on both")

    def __str__(self) -> str:
        left = f"/{self.left}/" if self.regex else self.left or '""'
        return f"{left} -> {' and '.join(right or repr('') for right in self.right)}"

    def apply(self, name: str) -> tuple[str, ...] | None:
        """The new names, or nothing where the rule does not match.

        Example:
            >>> Rename("layer{n}.conv{m}", ("stages.{n-1}.conv{m}",)).apply("layer2.conv1.weight")
            ('stages.1.conv1.weight',)
            >>> Rename("backbone.", ("",)).apply("my_backbone.fc") is None
            True
        """
        pattern = self._pattern()
        if self.regex:
            return tuple(pattern.sub(right, name) for right in self.right) if pattern.search(name) else None
        match = pattern.match(name)
        if match is None:
            return None
        return tuple(_fill(right, match, self) + name[match.end() :] for right in self.right)

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON-ready values; ``Rename(**values)`` with a tuple for ``right`` is the way back."""
        return {"left": self.left, "right": list(self.right), "regex": self.regex}

    def _check_right(self, pattern: re.Pattern[str], right: str) -> None:
        try:
            # With nothing as one more alternative it matches, and the right side is read.
            re.sub(f"{pattern.pattern}|", right, "", flags=pattern.flags)
        except (re.error, IndexError) as error:
            raise CheckpointError(
                f"rename {self}: the right side does not go with the left: {error}\n"
                "  fix: groups of the left side, as for re.sub"
            ) from error

    def _pattern(self) -> re.Pattern[str]:
        if self.regex:
            try:
                return re.compile(self.left)
            except re.error as error:
                raise CheckpointError(f"rename {self}: the left side is no regular expression: {error}") from error
        end = "" if not self.left or self.left.endswith(".") else r"(?=\.|\Z)"
        return re.compile(_template(self.left) + end)


def read_renames(renames: Renames | None) -> tuple[Rename, ...]:
    """Rules in any of the forms in which they may be given.

    Args:
        renames: ``"a -> b"``, a mapping of left to right sides, or a list of texts, pairs and rules.

    Raises:
        CheckpointError: a text has no arrow, or a rule contradicts itself.

    Example:
        >>> [str(rule) for rule in read_renames(["fc -> head", (re.compile("gamma$"), "weight")])]
        ['fc -> head', '/gamma$/ -> weight']
    """
    if renames is None:
        return ()
    if isinstance(renames, (str, Rename)):
        renames = (renames,)
    pairs = renames.items() if isinstance(renames, Mapping) else renames
    return tuple(_read(each) for each in cast("Iterable[Any]", pairs))


def rename_all(names: Iterable[str], rules: Sequence[Rename]) -> dict[str, tuple[str, ...]]:
    """The new names of those that a rule matches; the first rule that matches a name is the one that counts.

    Raises:
        CheckpointError: two names would become one, or a rule matches nothing.

    Example:
        >>> rename_all(["fc.weight", "conv.weight"], read_renames("fc -> head"))
        {'fc.weight': ('head.weight',)}
    """
    known = list(names)
    renamed: dict[str, tuple[str, ...]] = {}
    matched: set[Rename] = set()
    for name in known:
        for rule in rules:
            new = rule.apply(name)
            if new is not None:
                matched.add(rule)
                renamed[name] = new
                break
    idle = [rule for rule in rules if rule not in matched]
    if idle:
        near = nearest(idle[0].left, known) or known
        raise CheckpointError(
            f"rename {idle[0]}: the rule matches none of {len(known)} names in the checkpoint\n"
            f"  found: {name_some(near)}\n"
            "  fix: a rule that matches from the beginning of a name, or leave it away; rules before it take names too"
        )
    taken: dict[str, list[str]] = {}
    for name in known:
        for new in renamed.get(name, (name,)):
            taken.setdefault(new, []).append(name)
    collisions = {new: old for new, old in taken.items() if len(old) > 1}
    if collisions:
        said = [f"    {printable(new)} <- {name_some(old)}" for new, old in list(collisions.items())[:8]]
        raise CheckpointError(
            f"rename: {len(collisions)} names would stand for several tensors each\n"
            + "\n".join(said)
            + "\n  fix: narrow the rules, or drop= the ones that are not wanted"
        )
    return renamed


def _read(given: Any) -> Rename:
    if isinstance(given, Rename):
        return given
    if isinstance(given, str):
        left, arrow, right = given.partition("->")
        if not arrow:
            raise CheckpointError(f'rename {given!r} has no arrow\n  fix: "old -> new"')
        # As a rule prints itself: two quotes are an empty side.
        sides = [side.strip() for side in (left, right)]
        left, right = ("" if side in {'""', "''"} else side for side in sides)
        return Rename(left, (right,))
    left, right = given
    rights: tuple[str, ...] = (right,) if isinstance(right, str) else tuple(right)
    return Rename(_with_flags(left), rights, True) if isinstance(left, re.Pattern) else Rename(left, rights)


def _with_flags(pattern: re.Pattern[str]) -> str:
    """The text of a pattern, its flags in front."""
    bare = re.compile(pattern.pattern).flags
    letters = "".join(
        letter
        for letter, flag in (("i", re.I), ("m", re.M), ("s", re.S), ("x", re.X), ("a", re.A))
        if pattern.flags & flag & ~bare
    )
    return f"(?{letters}){pattern.pattern}" if letters else pattern.pattern


def _template(left: str) -> str:
    """A regular expression for a template; a number that is named twice has to be the same."""
    parts: list[str] = []
    seen: set[str] = set()
    end = 0
    for match in _PLACE.finditer(left):
        parts.append(re.escape(left[end : match.start()]))
        end = match.end()
        name = match[1]
        if name is None:
            parts.append(r"([^.]+?)")
        elif match[2]:
            raise CheckpointError(f"rename: {match[0]} on the left side\n  fix: calculate on the right side")
        else:
            parts.append(f"(?P={name})" if name in seen else rf"(?P<{name}>\d{{1,18}})")
            seen.add(name)
    return "".join(parts) + re.escape(left[end:])


def _fill(right: str, match: re.Match[str], rule: Rename) -> str:
    named = {match.re.groupindex[name] for name in match.re.groupindex}
    stars = iter([text for index, text in enumerate(match.groups(), 1) if index not in named])

    def value(place: re.Match[str]) -> str:
        if place[4]:
            return next(stars)
        text = match[place[1]]
        if not place[2]:
            return text
        number = int(text) + int(f"{place[2]}{place[3]}")
        if number < 0:
            raise CheckpointError(f"rename {rule}: {match[0]!r} would get the number {number}\n  fix: another offset")
        return str(number)

    return _PLACE.sub(value, right)
