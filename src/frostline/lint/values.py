"""What an expression is, as far as source tells: a module, parameters, an optimizer ..., and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

EACH = ".*"
"""What is put behind a path for one of the things that a loop goes over."""

RETURNED = "<return>"
"""The path, inside of a function, of what it returns without giving it a name."""

# Kinds of values that hold parameters of a module, one after the other.
PARAMETERS = frozenset({"parameters", "named_parameters"})
# Kinds of values that hold modules.
MODULES = frozenset({"modules", "named_modules"})


@dataclass(frozen=True)
class Value:
    """What is known of the value of an expression.

    Attributes:
        kind: one of ``module``, ``modules``, ``named_modules``, ``parameter``, ``parameters``, ``named_parameters``,
            ``tensor``, ``optimizer``, ``scheduler``, ``scaler``, ``accelerator``, ``loader``, ``state_dict``,
            ``checkpoint``, ``group`` (a dict with ``"params"``), ``averaged``, ``name`` (the name of a parameter or
            module in a loop), ``const``, ``ref`` (a library's module, function or class), ``function`` and ``class``
            (of the files that are linted), ``object`` (an instance of such a class), ``list``, ``tuple``, ``dict``.
        cls: the qualified name of its class or, of ``ref``, ``function`` and ``class``, of itself; "" if unknown.
        path: where it lives, as dotted names: ``model.fc``. Of parameters and modules that are gone through, the module
            they belong to; of one of them, that with :data:`EACH`. Empty for what has no name yet.
        sure: no: it was told from a name or from how it is used.
        const: the value of a literal.
        items: of a tuple or list, its elements; of a sum of lists, its parts.
        filtered: of parameters or modules: some may be left out.
        tests: what those have to pass that are not left out, as text in which a parameter is ``p`` and its name
            ``name``; ``?`` for what cannot be told.
        lazy: an iterator: it can be gone through once.
        copy_of: the path of what it is a copy of.
        maker: of a module, the library's function that made it, with the literal that it was given first:
            ``timm.create_model:resnet50``.
    """

    kind: str
    cls: str = ""
    path: str = ""
    sure: bool = True
    const: object = None
    items: tuple[Value | None, ...] = ()
    filtered: bool = False
    tests: tuple[str, ...] = ()
    lazy: bool = False
    copy_of: str = ""
    maker: str = ""

    def at(self, path: str) -> Value:
        """The same value under this path."""
        return replace(self, path=path)

    @cached_property
    def size(self) -> int:
        """How many values there are in it, and in those, itself among them."""
        return 1 + sum(item.size for item in self.items if item is not None)

    @property
    def owner(self) -> str:
        """The path without what a loop put behind it.

        Example:
            >>> Value("parameter", path="model.*.*").owner
            'model'
        """
        return owner_of(self.path)

    def sources(self) -> list[Value]:
        """The parameters in it, group by group, part by part: what an optimizer is given.

        Example:
            >>> body, head = Value("parameters", path="body"), Value("parameters", path="head")
            >>> groups = Value("list", items=(Value("group", items=(body,)), Value("group", items=(head,))))
            >>> [source.path for source in groups.sources()]
            ['body', 'head']
        """
        if self.kind in {"list", "tuple", "group"} or (self.kind in PARAMETERS and self.items):
            found = [source for item in self.items for source in (item or Value("unknown")).sources()]
            if self.filtered:
                return [replace(each, filtered=True, tests=each.tests + self.tests) for each in found]
            return found
        return [self]


def owner_of(path: str) -> str:
    """A path without what loops put behind it."""
    while path.endswith(EACH):
        path = path[: -len(EACH)]
    return path


def is_below(path: str, above: str) -> bool:
    """Whether a path is another one, or lies in it.

    Example:
        >>> is_below("model.fc", "model"), is_below("model", "model"), is_below("model2", "model")
        (True, True, False)
    """
    return path == above or (path.startswith(above) and path[len(above) : len(above) + 1] in (".", "["))


def related(one: str, other: str) -> bool:
    """Whether one of two paths lies in the other."""
    return is_below(one, other) or is_below(other, one)
