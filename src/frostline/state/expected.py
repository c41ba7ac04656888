"""Whether what a verb was given is of the kind it works on, asked before anything is done."""

from __future__ import annotations

from torch import nn

from frostline.errors import UnsupportedModel


def expect(given: object, kind: type | tuple[type, ...], verb: str, usage: str) -> None:
    """Do nothing if an argument is of its kind.

    Args:
        given: the argument.
        kind: what it has to be.
        verb: who asks, as it is called.
        usage: how the verb is called rightly.

    Raises:
        UnsupportedModel: it is of another kind.

    Example:
        >>> expect(nn.Linear(1, 1), nn.Module, "freeze", "freeze(model, *names)")
        >>> expect("fc", nn.Module, "freeze", "freeze(model, *names)")
        Traceback (most recent call last):
            ...
        frostline.errors.UnsupportedModel: freeze: expected a Module, found 'fc', a str
          fix: freeze(model, *names)
    """
    if isinstance(given, kind):
        return
    kinds = " or ".join(_a(each) for each in (kind if isinstance(kind, tuple) else (kind,)))
    shown = f"{given!r}, " if isinstance(given, (str, int, float)) else ""
    raise UnsupportedModel(f"{verb}: expected {kinds}, found {shown}{_a(type(given))}\n  fix: {usage}")


def expect_model(given: object, verb: str, usage: str) -> None:
    """Do nothing if an argument is a model.

    Raises:
        UnsupportedModel: it is something else.

    Example:
        >>> expect_model(nn.Linear(1, 1), "freeze", "freeze(model, *names)")
    """
    if isinstance(given, str):
        usage = f"{usage}, where model is the module itself and not its name"
    expect(given, nn.Module, verb, usage)


def _a(kind: type) -> str:
    name = kind.__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
