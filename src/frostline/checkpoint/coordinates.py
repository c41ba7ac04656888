"""Where a module stands among its like, told from its path: words that mean something, and ranks in place of numbers.

``layer1.0.bn2`` of one library and ``stages.0.0.norm_b`` of another have no word and no number in common, and stand at
one place: the first of three stages, the first of its blocks, the second of its norms. Knows strings only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from frostline.checkpoint.units import Unit

# A number of more digits is none that modules are counted by.
_ATOMS = re.compile(r"\d{1,18}|[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Words for the whole, for a stretch of it, or for what shapes tell anyway: they tell no module from another.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "module model net network backbone trunk body base main feature features stem layer layers stage stages block "
        "blocks seq sequential list unit units cell cells conv conv d convolution convs norm norms bn ln gn batchnorm "
        "layernorm normalization normalisation batch group fc linear lin dense proj projection weight bias",
    )
)
_SYNONYMS: Mapping[str, str] = {
    word: words.split()[0]
    for words in (
        "shortcut downsample skip residual identity",
        "head classifier classification logits cls_head prediction predictions",
        "q query queries",
        "k key keys",
        "v value values",
        "out output o",
        "attn attention self msa mha",
        "mlp ffn feedforward intermediate",
        "embed embedding embeddings emb",
        "pos position positional wpe",
        "token tok wte word",
        "enc encoder",
        "dec decoder",
        "down downsampling",
        "up upsampling",
        "mean mu",
        "se squeeze",
    )
    for word in words.split()
}
_ORDINALS: Mapping[str, int] = {"first": 1, "second": 2, "third": 3, "one": 1, "two": 2, "three": 3}


@dataclass(frozen=True)
class Coordinates:
    """A place among modules of one kind.

    Attributes:
        words: what of its path means something, without numbers.
        ranks: for each number on its path that tells it from others of its like, how many of those are smaller, and how
            many there are: the third of three and the third of four may be anything to each other.
    """

    words: frozenset[str]
    ranks: tuple[tuple[int, int], ...]


# One atom of a path: a word, or an ordinal (a number or a letter) with its value.
_Atom = tuple[str, int]


def coordinates_of(units: Mapping[str, Unit]) -> dict[str, Coordinates]:
    """The place of each module.

    A number counts only where it tells modules of one kind apart: the 1 of a lone ``bn1`` says nothing.

    Args:
        units: the modules of one side.

    Example:
        >>> from frostline.checkpoint.units import units_of
        >>> sides = ["layer1.bn1", "layer1.bn2", "layer2.bn1"], ["s.0.norm_a", "s.0.norm_b", "s.1.norm_a"]
        >>> shapes = [{f"{path}.weight": (4,) for path in side} for side in sides]
        >>> [[place.ranks for place in coordinates_of(units_of(side)).values()][1] for side in shapes]
        [((0, 2), (1, 2)), ((0, 2), (1, 2))]
    """
    paths = {path: _atoms(path) for path in units}
    values: dict[object, set[int]] = {}
    slots: dict[str, list[tuple[int, object]]] = {}
    # All letters at one place of a container, whatever they stand for there.
    letters: dict[object, set[int]] = {}
    for path, atoms in paths.items():
        shape = tuple(word for word, _ in atoms)
        for index, (word, value) in enumerate(atoms):
            if word in {"#", "@"}:
                # What comes before names one container; behind it, numbers may be any.
                key = (tuple(atoms[:index]), word, shape[index + 1 :], units[path].kind)
                values.setdefault(key, set()).add(value)
                if word == "@":
                    letters.setdefault(tuple(atoms[:index]), set()).add(value)
                slots.setdefault(path, []).append((index, key))
    found: dict[str, Coordinates] = {}
    for path, atoms in paths.items():
        words = {word for word, _ in atoms if word not in {"#", "@"}}
        ranks: list[tuple[int, int]] = []
        for index, key in slots.get(path, []):
            word, value = atoms[index]
            alike = sorted(values[key])
            spoken = letters[tuple(atoms[:index])] if word == "@" else set[int]()
            if spoken != set(range(len(spoken))):
                words.add(chr(ord("a") + value))  # not a, b, c: a letter that stands for a word
            elif len(alike) > 1:
                ranks.append((alike.index(value), len(alike)))
        found[path] = Coordinates(frozenset(_meaning(word) for word in words if word not in _EMPTY), tuple(ranks))
    return found


def likeness(one: frozenset[str], other: frozenset[str]) -> float:
    """How much two sets of words have in common, from 0 to 1; one half where one of them says nothing.

    Example:
        >>> likeness(frozenset({"shortcut"}), frozenset({"shortcut"})), likeness(frozenset(), frozenset({"aux"}))
        (1.0, 0.5)
    """
    if not one or not other:
        return 1.0 if one == other else 0.5
    return len(one & other) / len(one | other)


def _meaning(word: str) -> str:
    return _SYNONYMS.get(word, word)


def _atoms(path: str) -> tuple[_Atom, ...]:
    """Words in lower case, numbers as ``#``, single letters and ordinal words that may count as ``@``."""
    atoms: list[_Atom] = []
    for text in _ATOMS.findall(path):
        word = text.lower()
        if word.isdecimal():
            atoms.append(("#", int(word)))
        elif word in _ORDINALS:
            atoms.append(("#", _ORDINALS[word]))
        elif len(word) == 1:
            atoms.append(("@", ord(word) - ord("a")))
        else:
            atoms.append((word, 0))
    return tuple(atoms)
