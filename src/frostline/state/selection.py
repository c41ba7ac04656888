"""Selectors: which part of a model is meant.

A selector is a glob on dotted paths, a compiled regular expression, a module or parameter object, a module type, or a
predicate. Selecting a module selects all below it. A selector that matches nothing is an error that names the nearest
paths, never an empty selection.
"""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeAlias

from torch import Tensor, nn

from frostline.errors import NothingSelected, SelectionError, name_some
from frostline.state import names

Predicate: TypeAlias = Callable[[str, nn.Module], bool]
Selector: TypeAlias = "str | re.Pattern[str] | nn.Module | nn.Parameter | type[nn.Module] | Predicate"

# What is a glob character, and the dots between names: what stands between them can be misspelt.
_GLOB = re.compile(r"(\[[^\]]*\]|[*?.]+)")


@dataclass(frozen=True)
class Selection:
    """What some selectors mean on one model.

    Attributes:
        root: the model, without wrappers.
        modules: path to module, for every module selected, descendants included, in the order of the model.
        parameters: path to parameter: all those of ``modules``, and those selected one by one.
        buffers: likewise.
        alone: paths of tensors that were selected one by one: their module is not in ``modules``.
    """

    root: nn.Module
    modules: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    alone: tuple[str, ...]

    @property
    def tops(self) -> dict[str, nn.Module]:
        """The selected modules that have no selected module above them."""
        return {p: m for p, m in self.modules.items() if not p or names.parent(p) not in self.modules}


def select(model: nn.Module, *selectors: Selector) -> Selection:
    """Find what selectors mean on a model. The model is only read.

    Args:
        model: any module; ``torch.compile`` and data-parallel wrappers are looked through.
        *selectors: each one of

            - a glob on dotted paths, ``"trunk"``, ``"layer*"``, ``"*.bn1"``; ``*`` stands for any characters, dots
              included. It matches modules, parameters and buffers; the empty string is the model itself. With ``!``
              in front, what it matches is left out again: ``"*", "!head"``; where all selectors have a ``!``, they
              leave out of the whole model;
            - ``re.compile(...)``, which has to match a whole path;
            - a module or parameter object of this model;
            - a module type, matched with ``isinstance``;
            - a predicate ``(path, module) -> bool``, asked for each module.

    Returns:
        The :class:`Selection`.

    Raises:
        NothingSelected: a selector matches nothing, or nothing is left.
        SelectionError: a selector is of no known kind, or there is none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> list(select(model, nn.BatchNorm1d).parameters)
        ['1.weight', '1.bias']
        >>> list(select(model, "!2").modules)
        ['0', '1']
    """
    root = names.unwrap(model)
    if not selectors:
        raise SelectionError('select: no selector was given.\n  fix: name a part, or "*" for the whole model')
    index = _Index(root)
    modules: set[str] = set()
    tensors: set[str] = set()
    if all(isinstance(s, str) and s.startswith("!") for s in selectors):
        modules, tensors = set(index.modules), set(index.tensors)
    for selector in selectors:
        minus = isinstance(selector, str) and selector.startswith("!")
        found_modules, found_tensors = index.find(selector[1:] if minus else selector)  # type: ignore[index]
        if not found_modules and not found_tensors:
            raise NothingSelected(_nothing(selector, index))
        below = index.below(found_modules)
        inside = {p for p in index.tensors if names.parent(p) in below}
        if minus:
            # A module that loses a part is no longer selected as a whole, only its other parts are.
            kept = modules - below - strict_ancestors(below | found_tensors)
            tensors |= {p for p in index.tensors if names.parent(p) in modules - kept}
            modules = kept
            tensors -= inside | found_tensors
        else:
            modules |= below
            tensors |= inside | found_tensors
    if not modules and not tensors:
        raise NothingSelected(
            f"select: nothing is left of {index.describe()} after {_show_all(selectors)}\n"
            "  fix: leave out less, or name what should be selected"
        )
    return index.selection(modules, tensors)


def exactly(path: str) -> str:
    """The glob that matches this path and no other.

    Example:
        >>> exactly("blocks.a*")
        'blocks.a[*]'
    """
    return glob.escape(path)


def strict_ancestors(paths: Iterable[str]) -> set[str]:
    """Every path that lies above one of these; the root is the empty string.

    Example:
        >>> sorted(strict_ancestors(["trunk.conv", "head"]))
        ['', 'trunk']
    """
    found: set[str] = set()
    for path in paths:
        above = path
        while above and (above := names.parent(above)) not in found:
            found.add(above)
    return found


class _Index:
    """Every path of a model, under all of its names."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.modules = dict(root.named_modules(remove_duplicate=False))
        self.parameters = dict(root.named_parameters(remove_duplicate=False))
        self.buffers = dict(root.named_buffers(remove_duplicate=False))
        self.tensors = {**self.parameters, **self.buffers}

    def describe(self) -> str:
        return f"{type(self.root).__name__} ({len(self.modules)} modules, {len(self.tensors)} tensors)"

    def below(self, tops: set[str]) -> set[str]:
        """The modules with these paths and all their descendants; parents come before their children in the walk."""
        found: set[str] = set()
        for path in self.modules:
            if path in tops or (path and names.parent(path) in found):
                found.add(path)
        return found

    def find(self, selector: Selector) -> tuple[set[str], set[str]]:
        if isinstance(selector, str):
            return self._where(lambda path: names.matches(path, selector))
        if isinstance(selector, re.Pattern):
            return self._where(lambda path: bool(selector.fullmatch(path) or selector.fullmatch(names.canonical(path))))
        if isinstance(selector, nn.Module):
            wanted = names.unwrap(selector)
            return {p for p, module in self.modules.items() if module is wanted}, set()
        if isinstance(selector, nn.Parameter):
            return set(), {p for p, parameter in self.parameters.items() if parameter is selector}
        if isinstance(selector, type):
            return {p for p, module in self.modules.items() if isinstance(module, selector)}, set()
        if callable(selector):
            return {p for p, module in self.modules.items() if selector(p, module)}, set()
        raise SelectionError(_no_selector(selector))

    def _where(self, test: Callable[[str], bool]) -> tuple[set[str], set[str]]:
        return {p for p in self.modules if test(p)}, {p for p in self.tensors if test(p)}

    def selection(self, modules: set[str], tensors: set[str]) -> Selection:
        return Selection(
            root=self.root,
            modules={p: m for p, m in self.modules.items() if p in modules},
            parameters={p: t for p, t in self.parameters.items() if p in tensors},
            buffers={p: t for p, t in self.buffers.items() if p in tensors},
            alone=tuple(p for p in self.tensors if p in tensors and names.parent(p) not in modules),
        )


def _show(selector: Selector) -> str:
    if isinstance(selector, re.Pattern):
        return f"regular expression {selector.pattern!r}"
    if isinstance(selector, nn.Module):
        return f"this {type(selector).__name__} object"
    if isinstance(selector, nn.Parameter):
        return f"this parameter of shape {tuple(selector.shape)}"
    if isinstance(selector, type):
        return f"type {selector.__name__}"
    if callable(selector):
        return f"predicate {getattr(selector, '__name__', type(selector).__name__)}"
    return f"pattern {selector!r}"


def _show_all(selectors: Iterable[Selector]) -> str:
    return ", ".join(_show(selector) for selector in selectors)


def _nothing(selector: Selector, index: _Index) -> str:
    message = f"{_show(selector)} matched nothing in {index.describe()}"
    pool = [*index.modules, *index.tensors]
    if isinstance(selector, (str, re.Pattern)):
        wanted = selector.lstrip("!") if isinstance(selector, str) else selector.pattern
        near = names.nearest(wanted, pool)
        message += f"\n  nearest names: {name_some(near or [p for p in pool if p and '.' not in p])}"
        message += _fix(selector, near, pool) or "\n  fix: name one of these, or a part inside them"
    elif isinstance(selector, type):
        present = list(dict.fromkeys(type(m).__name__ for m in index.modules.values()))
        message += f"\n  types present: {name_some(present)}"
    elif isinstance(selector, (nn.Module, nn.Parameter)):
        message += "\n  fix: pass an object of this very model; a copy (deepcopy, load) is another object"
    return message


def _no_selector(selector: object) -> str:
    kind = type(selector).__name__
    fix = "pass a glob, a compiled regular expression, a module, a parameter, a module type or a predicate"
    if isinstance(selector, (list, tuple, set)):
        fix = "pass each selector as an argument of its own: freeze(model, *names), and not freeze(model, names)"
    elif isinstance(selector, int) and not isinstance(selector, bool):
        fix = f"name the part by its path, which is a string: {str(selector)!r}"
    return f"select: {selector!r} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}, which is no selector.\n  fix: {fix}"


def _fix(selector: str | re.Pattern[str], near: list[str], pool: list[str]) -> str:
    """The line of a fix, where there is one that selects something and means what was asked."""
    if isinstance(selector, re.Pattern):
        return f"\n  fix: use {exactly(near[0])!r} as the selector" if near else ""
    minus, wanted = ("!", selector[1:]) if selector.startswith("!") else ("", selector)
    if "," in wanted:
        parts = [part.strip().lstrip("!") for part in wanted.split(",") if part.strip()]
        several = [minus + (_mended(part, names.nearest(part, pool), pool) or part) for part in parts]
        shell = " ".join(f"--freeze {shlex.quote(part)}" for part in several)
        return f"\n  fix: use each as a selector of its own: {', '.join(map(repr, several))}; in a shell: {shell}"
    above, _, rest = wanted.partition(".")
    if rest and above not in pool and _matches_some(rest, pool):
        return f"\n  fix: leave out {above + '.'!r}, which is not in this model: use {minus + rest!r} as the selector"
    mended = _mended(wanted, near, pool)
    return f"\n  fix: use {minus + mended!r} as the selector" if mended else ""


def _mended(wanted: str, near: list[str], pool: list[str]) -> str | None:
    """The pattern most like this one that matches something: its own glob characters stay."""
    if _matches_some(wanted, pool):
        return wanted
    pieces = _GLOB.split(wanted)
    if len(pieces) == 1:
        return exactly(near[0]) if near else None
    words = sorted({word for path in pool for token in path.split(".") for word in (token, token.rstrip("0123456789"))})
    for number, piece in enumerate(pieces):
        for word in names.nearest(piece, words) if piece and number % 2 == 0 else ():
            pattern = "".join([*pieces[:number], word, *pieces[number + 1 :]])
            if _matches_some(pattern, pool):
                return pattern
    # It may have been meant as a name that looks like a glob.
    if near and SequenceMatcher(None, wanted, near[0]).ratio() >= 0.8:
        return exactly(near[0])
    return None


def _matches_some(pattern: str, pool: list[str]) -> bool:
    return any(path and names.matches(path, pattern) for path in pool)
