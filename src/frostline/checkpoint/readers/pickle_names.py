"""What the names in a pickle stand for; nothing is ever imported, a name stays a name.

Three kinds of names: those whose calls become plain data, those that are harmless and become inert stand-ins, and all
others, for which a file is refused. Knows nothing of torch.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

UNKNOWN = "a name that is made up while loading"
# Hashing a tuple in a tuple takes time that doubles with each level, if each holds the one below it twice; and tuples
# with equal hashes are easy to make.
_LONGEST_KEY = 16
_MOST_TUPLE_KEYS = 10_000
_LARGEST_KEY = 2**64
_ATOMS = frozenset({str, bytes, bool, float, type(None)})

# Types of data that checkpoints carry beside tensors: settings, paths, dates, numpy's scalars and arrays.
_HARMLESS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
    r"|datetime\.(datetime|date|time|timedelta|timezone)"
    r"|numpy\.(_core|core)\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)"
    r"|numpy\.(ndarray|dtype|dtypes\.\w+DType|bool_?|u?int\d*|float\d*|complex\d*|str_|bytes_)"
    r"|builtins\.(object|int|float|bool|str|bytes|list|dict|tuple|range|slice|long|unicode|xrange)"
    r"|copyreg\._reconstructor"
)
# Python 2 had other names for them.
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Damaged(ValueError):
    """The pickle does what no writer of pickles does."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for a harmless object whose values were left out.

    Attributes:
        name: of its type, dotted.
    """

    name: str


@dataclass(frozen=True, eq=False)
class Global(Opaque):
    """A name in a pickle, and what calling it gives; without that, another inert stand-in."""

    build: Callable[[tuple[Any, ...]], object] | None = None


@dataclass(eq=False)
class Record:
    """An object of a type whose fields are wanted: what the pickle gave it, as data. No code of the type is run.

    Attributes:
        name: of its type, dotted.
        arguments: what it was made with.
        state: what it was given afterwards, usually its fields under their names.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


class Names:
    """Looks names up, and keeps a list of those for which the file must be refused.

    Attributes:
        wanted: names that are neither known nor harmless.
    """

    def __init__(self, known: dict[str, Callable[[tuple[Any, ...]], object]], budget: int) -> None:
        """Begin a pickle.

        Args:
            known: further names, and what a call of them gives.
            budget: how many elements all copies of collections together may have: no more than the pickle has bytes,
                where nothing is copied again and again.
        """
        self.wanted: set[str] = set()
        self._budget = budget
        self._tuple_keys = 0
        self._found: dict[str, object] = {}
        self._known = known | {
            "_codecs.encode": self._encode,
            "builtins.bytearray": self._bytearray,
            "builtins.bytes": _bytes,
            "builtins.complex": _complex,
            "builtins.set": lambda args: set(self.keys(args)),
            "builtins.frozenset": lambda args: frozenset(self.keys(args)),
            "collections.OrderedDict": self._ordered,
            "collections.Counter": self._counter,
            # The factory would be called on a missing key.
            "collections.defaultdict": lambda _: defaultdict[object, object](None),
        }

    def find(self, module: object, name: object) -> object:
        """What a name stands for."""
        if type(module) is not str or type(name) is not str:
            self.wanted.add(UNKNOWN)
            return Global(UNKNOWN)
        dotted = f"{_MODULES.get(module, module)}.{name}"
        found = self._found.get(dotted)
        if found is None:
            found = self._found[dotted] = self._look_up(dotted)
        return found

    def _look_up(self, dotted: str) -> object:
        build = self._known.get(dotted)
        if build is None and not _HARMLESS.fullmatch(dotted):
            self.wanted.add(dotted)
        return Global(dotted, build)

    def call(self, function: Any, args: Any) -> object:
        """What calling a name gives: data, or an inert stand-in."""
        if type(args) is not tuple:
            raise Damaged("arguments that are no tuple")
        if type(function) is Global:
            if function.build is not None:
                return function.build(args)
            if function.name == "copyreg._reconstructor" and args and isinstance(args[0], Opaque):
                return Opaque(args[0].name)
            return Opaque(function.name)
        raise Damaged(f"a call of a {type(function).__name__}")

    def key(self, key: object) -> object:
        """A key of a dictionary or an element of a set, if it can be hashed in an instant."""
        kind = type(key)
        if kind in _ATOMS or isinstance(key, Opaque) or (kind is int and abs(cast("int", key)) < _LARGEST_KEY):
            return key
        if kind is tuple:
            self._tuple_keys += 1
            parts = cast("tuple[object, ...]", key)
            if (
                self._tuple_keys <= _MOST_TUPLE_KEYS
                and len(parts) <= _LONGEST_KEY
                and all(type(part) in _ATOMS or (type(part) is int and abs(part) < _LARGEST_KEY) for part in parts)
            ):
                return parts
        elif kind.__hash__ is object.__hash__:
            return key
        raise Damaged(f"a {kind.__name__} as a key, of a kind that no checkpoint has")

    def keys(self, args: tuple[Any, ...]) -> list[object]:
        """The elements that a set is made of."""
        if len(args) > 1:
            raise Damaged("a set of several arguments")
        return [self.key(each) for each in self._spend(args[0])] if args else []

    def _spend(self, values: object) -> Any:
        """Values that are about to be copied."""
        if not isinstance(values, (list, tuple, dict, set, frozenset, str, bytes, bytearray)):
            raise Damaged(f"a {type(values).__name__} that is to be copied")
        self._budget -= len(cast("Any", values))
        if self._budget < 0:
            raise Damaged("more data than the file has bytes")
        return cast("Any", values)

    def _encode(self, args: tuple[Any, ...]) -> bytes:
        # Older protocols have no bytes: they write texts in this encoding.
        text, encoding = args
        if type(text) is not str or encoding not in {"latin1", "latin-1"}:
            raise Damaged("a text in an encoding that no writer of pickles uses")
        return self._spend(text).encode("latin1")

    def _bytearray(self, args: tuple[Any, ...]) -> bytearray:
        if not args:
            return bytearray()
        if isinstance(args[0], (bytes, bytearray)) and len(args) == 1:
            return bytearray(self._spend(args[0]))
        if type(args[0]) is str and len(args) == 2:
            return bytearray(self._encode(args))
        raise Damaged("a bytearray that is not made of bytes")  # one of a number would be as long as that

    def _ordered(self, args: tuple[Any, ...]) -> OrderedDict[object, object]:
        ordered: OrderedDict[object, object] = OrderedDict()
        for key, value in self._spend(args[0]) if args else ():
            ordered[self.key(key)] = value
        return ordered

    def _counter(self, args: tuple[Any, ...]) -> Counter[object]:
        counter: Counter[object] = Counter()
        if args:
            if not isinstance(args[0], dict):
                raise Damaged("a counter that is not made of counts")
            dict.update(counter, self._spend(args[0]))
        return counter


def _bytes(args: tuple[Any, ...]) -> bytes:
    # How older protocols write bytes of length zero, and nothing else.
    if args:
        raise Damaged("bytes that are made of something")
    return b""


def _complex(args: tuple[Any, ...]) -> complex:
    if not all(type(each) in (int, float) for each in args):
        raise Damaged("a complex number that is not made of numbers")
    return complex(*args)
