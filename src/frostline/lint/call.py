"""A call, as it is passed on to what knows its meaning."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from frostline.lint.frame import Frame
from frostline.lint.values import Value


@dataclass(frozen=True)
class Call:
    """A call of a method.

    Attributes:
        function: what is called.
        receiver: whose method it is, as far as that is known.
        path: the path of the receiver.
        node: the call.
        args: its arguments.
        named: those with a name.
        unused: nobody uses its result.
        frame: where it stands.
    """

    function: ast.Attribute
    receiver: Value | None
    path: str
    node: ast.Call
    args: list[Value | None]
    named: dict[str, Value | None]
    unused: bool
    frame: Frame


def truth(value: Value | None) -> bool | None:
    """A literal as a truth value; ``None`` if it is none."""
    if value is None or value.kind != "const":
        return None
    return bool(value.const)
