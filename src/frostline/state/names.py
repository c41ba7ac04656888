"""Dotted paths: joining, wrapper tokens, nearest names, and folding many paths into a readable few.

Knows strings, and of models only which wrappers put a token of their own into a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import nn

from frostline.errors import UnsupportedModel, name_some
from frostline.state.expected import expect_model

# Wrappers that insert a token of their own. `module` is not here: it is a wrapper's token only under DDP and
# DataParallel, and a common name elsewhere, so `unwrap` looks at the live object instead.
WRAPPER_TOKENS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
# Python turns no more than some thousand digits into a number, and names may come from anyone.
_NUMBER = re.compile(r"(\d{1,18})")


def join(*parts: str) -> str:
    """Join the parts of a dotted path; the root is the empty string.

    Example:
        >>> join("", "layer1", "weight")
        'layer1.weight'
    """
    return ".".join(part for part in parts if part)


def parent(path: str) -> str:
    """The path without its last token; the parent of a root-level name is the root.

    Example:
        >>> parent("trunk.conv.weight"), parent("cls_token")
        ('trunk.conv', '')
    """
    return path.rpartition(".")[0]


def is_under(path: str, ancestor: str) -> bool:
    """Whether ``path`` is ``ancestor`` or lies below it; everything lies below the root.

    Example:
        >>> is_under("layer1.0", "layer1"), is_under("layer10", "layer1")
        (True, False)
    """
    return not ancestor or path == ancestor or path.startswith(ancestor + ".")


def canonical(path: str) -> str:
    """The path as the user wrote the model: tokens that wrappers inserted are left out.

    Example:
        >>> canonical("_orig_mod.layer1._checkpoint_wrapped_module.conv")
        'layer1.conv'
    """
    return ".".join(token for token in path.split(".") if token not in WRAPPER_TOKENS)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, DistributedDataParallel and DataParallel, at any depth.

    Raises:
        UnsupportedModel: it is no module, or a scripted or traced one, whose tables are copies that nothing can be
            hung on.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> unwrap(nn.DataParallel(model)) is model
        True
    """
    expect_model(model, "model", "pass the model, a torch.nn.Module")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(model, torch.jit.ScriptModule):
            raise UnsupportedModel(
                f"{type(model).__name__}: a module of torch.jit cannot be looked into or held.\n"
                "  fix: pass the module that it was made from, and script it afterwards"
            )
        elif "_orig_mod" in model._modules:
            model = cast("nn.Module", model._modules["_orig_mod"])
        else:
            return model


def nearest(wanted: str, names: Iterable[str], most: int = 8) -> list[str]:
    """The names most like ``wanted``, best first.

    Whole paths are compared first, then the last tokens, so that ``"trunk.bn9"`` finds ``"trunk.bn1"`` and ``"bn1"``.

    Example:
        >>> nearest("backbon", ["backbone", "backbone.conv", "head"])
        ['backbone', 'backbone.conv']
    """
    pool = list(dict.fromkeys(name for name in names if name))
    found = get_close_matches(wanted, pool, n=most, cutoff=0.6)
    last = wanted.rpartition(".")[2].strip("*") or wanted
    by_last = sorted(
        (name for name in pool if name not in found),
        key=lambda name: -SequenceMatcher(None, last, name.rpartition(".")[2]).ratio(),
    )
    found += [n for n in by_last if SequenceMatcher(None, last, n.rpartition(".")[2]).ratio() >= 0.75]
    found += [n for n in pool if n not in found and last and (last in n)]
    return found[:most]


def matches(path: str, pattern: str) -> bool:
    """Whether a glob matches the path, as it stands or without the tokens of wrappers.

    ``*`` stands for any characters, dots included, as in :mod:`fnmatch`.

    Example:
        >>> matches("layer1.0.bn1", "layer*.bn1"), matches("_orig_mod.fc", "fc")
        (True, True)
    """
    return fnmatchcase(path, pattern) or fnmatchcase(canonical(path), pattern)


@dataclass(frozen=True)
class Folded:
    """Several paths that differ only in their numbers.

    Attributes:
        pattern: the paths in one line, ``layer[1-4].[0-1].bn1.running_mean``.
        paths: what it stands for, in the order given.
    """

    pattern: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return self.pattern if len(self.paths) == 1 else f"{self.pattern} (x{len(self.paths)})"


def fold(paths: Sequence[str]) -> list[Folded]:
    """Group paths that differ only in numbers; the groups keep the order of their first members.

    Example:
        >>> [str(f) for f in fold(["bn1.running_mean", "bn2.running_mean", "fc.weight"])]
        ['bn[1-2].running_mean (x2)', 'fc.weight']
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        groups.setdefault(tuple(_NUMBER.split(path)[::2]), []).append(path)
    return [Folded(_pattern(members), tuple(members)) for members in groups.values()]


def name_folded(paths: Sequence[str], most: int = 8, *, root: str = "", rest: str = "") -> str:
    """Name paths in a line: those that differ only in numbers together, at most ``most``, and count the others.

    Args:
        paths: the paths, in the order in which they should be read.
        most: how many groups are written out.
        root: what the root is called, whose path is empty.
        rest: how to see the others.

    Example:
        >>> name_folded(["bn1.bias", "bn2.bias", "", "fc.bias"], 2, root="(root)", rest="hold.paths")
        'bn[1-2].bias (x2), (root) (+1 more; hold.paths)'
    """
    return name_some([str(folded) or root for folded in fold(paths)], most, rest)


def _pattern(members: list[str]) -> str:
    """The parts of the paths, each written once; split by numbers, every second part is a number."""
    columns = zip(*(_NUMBER.split(member) for member in members), strict=True)
    return "".join(part[0] if len(set(part)) == 1 else _range([int(n) for n in part]) for part in columns)


def _range(numbers: list[int]) -> str:
    """``[1-4]`` where no number between is left out, else ``{0,3}``; ``{0..30}`` where that would be long."""
    distinct = sorted(set(numbers))
    if distinct[-1] - distinct[0] + 1 == len(distinct):
        return str(distinct[0]) if len(distinct) == 1 else f"[{distinct[0]}-{distinct[-1]}]"
    said = ",".join(map(str, distinct)) if len(distinct) <= 4 else f"{distinct[0]}..{distinct[-1]}"
    return f"{{{said}}}"


def natural_key(path: str) -> list[tuple[int, int, str]]:
    """A sort key under which ``layer2`` comes before ``layer10``.

    Example:
        >>> sorted(["layer10", "layer2"], key=natural_key)
        ['layer2', 'layer10']
    """
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _NUMBER.split(path) if part]
