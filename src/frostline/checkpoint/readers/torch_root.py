"""What a pickle of torch holds, made safe to walk: bounded in depth and in size, with what must be said of it.

Knows data; knows nothing of files. A pickle can hold a list in itself, or a list that holds another one twice, that
one another one twice, and so on for a hundred levels: whoever walked that would never come back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, cast

from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.pickle_data import BadPickle
from frostline.checkpoint.readers.pickle_names import Damaged, Opaque
from frostline.checkpoint.readers.refusals import cut_short, unsafe
from frostline.checkpoint.readers.source import SourceFile
from frostline.checkpoint.readers.torch_objects import TorchNames
from frostline.checkpoint.readers.torch_whole import read_whole

# Containers in containers; real checkpoints have some five.
DEEPEST = 100
# Entries, with those of a container counted once for each place where it stands. What is shared may multiply the
# entries of a file by so much, or reach so many.
MOST_SHARED = 1_000_000
_MOST_TIMES = 4
_PASSIVE = frozenset({str, int, float, bool, bytes, type(None)})


def survey(root: object) -> tuple[dict[str, Mapping[str, Any]], tuple[str, ...]]:
    """Walk through everything once.

    Returns:
        The versions that state dicts carry, by the dotted path of their container; and the names of the stand-ins.

    Raises:
        Damaged: it is nested too deep, in itself, or without end.
    """
    versions: dict[str, Mapping[str, Any]] = {}
    opaque: set[str] = set()
    # Height and entries of each container that is done; zero for one that is still being walked.
    done: dict[int, tuple[int, int]] = {}
    actual = 0
    path: list[str] = []
    levels: list[tuple[object, list[tuple[str, object]], list[int]]] = []

    def enter(name: str, value: object) -> None:
        done[id(value)] = (0, 0)
        path.append(name)
        if len(levels) >= DEEPEST:
            raise Damaged(f"containers that are nested more than {DEEPEST} deep")
        metadata = getattr(value, "_metadata", None) if type(value) is OrderedDict else None
        if isinstance(metadata, Mapping):
            found = _versions(cast("Mapping[object, object]", metadata))
            if found:
                versions[".".join(path[2:])] = found
        levels.append((value, _inner(value), [0, 0]))

    # A container around everything, so that the outermost is treated as any other.
    enter("", [root])
    while levels:
        value, rest, (height, entries) = levels[-1]
        if not rest:
            levels.pop()
            path.pop()
            count = len(cast("Any", value))
            actual += count
            done[id(value)] = (height + 1, entries + count)
            if levels:
                _add(levels[-1][2], done[id(value)])
            elif entries > max(MOST_SHARED, _MOST_TIMES * actual):
                raise Damaged(f"{entries:,} entries, all made of {actual:,}")
            continue
        name, inner = rest.pop()
        if isinstance(inner, Opaque):
            opaque.add(inner.name)
        elif not isinstance(inner, (dict, list, tuple, set, frozenset)):
            continue
        elif id(inner) not in done:
            enter(name, inner)
        elif done[id(inner)][0] == 0:
            raise Damaged("a container that holds itself")
        else:
            if len(levels) + done[id(inner)][0] > DEEPEST:
                raise Damaged(f"containers that are nested more than {DEEPEST} deep")
            _add(levels[-1][2], done[id(inner)])
    return versions, tuple(sorted(opaque))


def finish(kind: str, source: SourceFile, root: object, names: TorchNames, *, allow_pickle: bool) -> Contents:
    """What a pickle holds, once it has been read as data, as far as it can be.

    Args:
        kind: the name of the format.
        source: the file.
        root: what the pickle holds, or the error that ended the reading.
        names: the names that were in it.
        allow_pickle: run the code that it names, if it names any.

    Raises:
        UnsafeCheckpoint: it wants to run code.
        CorruptCheckpoint: it is damaged, or nobody could walk through it, or torch cannot read what only torch can.
    """
    error = root if isinstance(root, BadPickle) else None
    if names.wanted:
        if not allow_pickle:
            raise unsafe(source.path, sorted(names.wanted)) from error
        return describe(kind, source, read_whole(source, allow_pickle=True))
    if error is not None:
        raise cut_short(source.path, source.size, str(error)) from error
    contents = describe(kind, source, root)
    return describe(kind, source, read_whole(source, allow_pickle=False)) if names.rare else contents


def describe(kind: str, source: SourceFile, root: object) -> Contents:
    """What a file holds.

    Raises:
        CorruptCheckpoint: nobody could walk through it.
    """
    try:
        versions, opaque = survey(root)
    except Damaged as error:
        raise cut_short(source.path, source.size, str(error)) from error
    return Contents(kind, root, (source.path,), {}, versions, opaque)


def _inner(value: object) -> list[tuple[str, object]]:
    items: Iterable[tuple[object, object]]
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
    else:
        items = enumerate(cast("Iterable[object]", value))
    return [(name if type(name) is str else "?", each) for name, each in items if type(each) not in _PASSIVE]


def _add(above: list[int], inner: tuple[int, int]) -> None:
    above[0] = max(above[0], inner[0])
    above[1] += inner[1]


def _versions(metadata: Mapping[object, object]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module, local in metadata.items():
        version = cast("Mapping[object, object]", local).get("version") if isinstance(local, Mapping) else None
        if isinstance(module, str) and type(version) is int:
            found[module] = version
    return found
