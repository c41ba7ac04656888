"""Which passes of a flow train a model, and which mode it is in at each of them."""

from __future__ import annotations

import ast
import re

from frostline.lint.events import Event, Flow
from frostline.lint.iterations import loop_of, within
from frostline.lint.values import is_below, owner_of, related
from frostline.lint.wrapping import is_elsewhere

TRAINS = frozenset({"backward", "step", "scaler_step"})
"""What shows that a pass was one of training."""

_WRAPPED = re.compile(r"\.(module|_orig_mod)(?=\.|$)")
# Calls that nobody here knows, and that may well switch the mode of what they are given.
SWITCHES = re.compile(r"train|fit|eval|mode|switch|restore|freeze|prepare|fix_", re.I)


class Phases:
    """The forward passes of a flow.

    Args:
        flow: the flow.

    Attributes:
        events: its events.
        training: the places of the passes that a backward pass or a step follows in the same loop.
    """

    def __init__(self, flow: Flow) -> None:
        self.events = flow.events
        self._inside = {
            e.path: str(e.get("of")) for e in flow.of("wrap") if e.path and e.get("of") and e.path != e.get("of")
        }
        self._known = {
            self.canonical(e.path).split(".")[0] for e in flow.of("forward", "new", "wrap", "optimizer") if e.path
        }
        steps = [i for i, e in enumerate(self.events) if e.what in TRAINS and not e.no_grad]
        self.training = [
            i
            for i, e in enumerate(self.events)
            if e.what == "forward" and e.path and not e.no_grad and any(self._is_trained_by(i, step) for step in steps)
        ]

    def canonical(self, path: str) -> str:
        """The path of a model without its wrappers, and without what loops put behind it."""
        path = owner_of(path)
        for wrapper, of in self._inside.items():
            if is_below(path, wrapper):
                path = of + path[len(wrapper) :]
                break
        return _WRAPPED.sub("", path)

    def _is_trained_by(self, index: int, step: int) -> bool:
        loop = loop_of(self.events[index])
        if step < index:
            return False
        return loop is None or within(self.events[step], loop)

    def trains(self, path: str) -> list[int]:
        """The places of the passes that train a model, as a whole or in parts."""
        path = self.canonical(path)
        return [i for i in self.training if related(self.canonical(self.events[i].path), path)]

    def is_about(self, mode: Event, path: str) -> bool:
        """Whether a change of mode concerns a model, or parts of it, or something that has no name here."""
        name = self.canonical(mode.path)
        return related(name, self.canonical(path)) or name.split(".")[0] not in self._known

    def is_of_all(self, mode: Event, path: str) -> bool:
        """Whether a change of mode is surely one of a whole model."""
        return mode.path == owner_of(mode.path) and is_below(self.canonical(path), self.canonical(mode.path))

    def modes_at(self, index: int, path: str) -> list[Event]:
        """What may have decided the mode of a model at one place, the last first.

        Changes of mode and, where it goes back so far, the event that made the model. What stands in another branch is
        left out; behind a change that surely happened, nothing is looked for.
        """
        here = self.events[index]
        branches = {(c.key, c.arm) for c in here.conditions}
        found: list[Event] = []
        for i in range(index - 1, -1, -1):
            event = self.events[i]
            if event.what == "new" and self.canonical(event.path) == self.canonical(path):
                return [*found, *self._made_with(i), event]
            if event.what != "mode" or is_elsewhere(event, here) or not self.is_about(event, path):
                continue
            found.append(event)
            if self.is_of_all(event, path) and branches.issuperset((c.key, c.arm) for c in event.conditions):
                return found
        return found

    def _made_with(self, index: int) -> list[Event]:
        """Changes of mode in the expression or function that made a model: ``net = Net().eval()``; the last first."""
        made = self.events[index]
        last = getattr(made.node, "end_lineno", None) or made.line
        depth = len(made.via)
        found: list[Event] = []
        for event in reversed(self.events[:index]):
            line = int(event.via[depth].rpartition(":")[2]) if len(event.via) > depth else event.line
            if event.via[:depth] != made.via or not made.line <= line <= last:
                break
            name = self.canonical(event.path)
            if event.what == "mode" and (name in {"", "<return>"} or is_below(self.canonical(made.path), name)):
                found.append(event)
        return found

    def unknown(self, path: str, first: int, last: int) -> list[Event]:
        """Calls between two places that are given a model, and of which nobody knows what they do."""
        path = self.canonical(path)
        return [
            e
            for e in self.events[first:last]
            if e.what == "unknown"
            and any(related(self.canonical(each), path) for each in (*e.get("paths", ()), _receiver(e)) if each)
        ]


def _receiver(event: Event) -> str:
    return str(event.get("name", "")).rpartition(".")[0]


def is_left(loop: ast.AST, lines: list[int]) -> bool:
    """Whether a loop, or the function around it, is left right behind one of some lines, so that no round follows."""
    stack: list[tuple[ast.AST, bool]] = [(loop, True)]
    while stack:
        node, is_innermost = stack.pop()
        for name in ("body", "orelse", "finalbody"):
            block: list[ast.stmt] = getattr(node, name, None) or []
            for i, each in enumerate(block):
                if not any(each.lineno <= line <= (each.end_lineno or each.lineno) for line in lines):
                    continue
                for later in block[i:]:
                    if isinstance(later, (ast.Return, ast.Raise)) or (is_innermost and isinstance(later, ast.Break)):
                        return True
                stack.append((each, is_innermost and not isinstance(each, (ast.For, ast.While, ast.AsyncFor))))
    return False
