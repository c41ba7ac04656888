"""What code does to models and optimizers, in the order in which it stands there."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from frostline.lint.values import Value


@dataclass(frozen=True)
class Loop:
    """A loop that an event stands in.

    Attributes:
        key: tells it from others of its flow.
        kind: ``for``, ``while`` or ``comprehension``.
        over: what it goes over; ``None`` where that is unknown.
        targets: the names that it binds.
        line: its first line.
        conditions: how many conditions it stands under.
        node: its statement, where that is in this file.
    """

    key: tuple[int, ...]
    kind: str
    over: Value | None = None
    targets: tuple[str, ...] = ()
    line: int = 0
    conditions: int = 0
    node: ast.AST | None = field(default=None, compare=False, repr=False)

    @property
    def is_over_data(self) -> bool:
        """Whether it goes over batches, epochs or nothing known: not over parameters, modules or a literal list."""
        if self.kind == "comprehension":
            return False
        return self.over is None or self.over.kind in {"loader", "ref", "object", "tensor", "function"}


@dataclass(frozen=True)
class Condition:
    """A branch that an event stands in.

    Attributes:
        key: tells it from others of its flow.
        arm: of an ``if``, ``True`` or its ``else``, ``False``.
        node: the test, where that is in this file.
    """

    key: tuple[int, ...]
    arm: bool
    node: ast.expr | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Event:
    """One thing that code does.

    Attributes:
        what: its kind:

            - ``flag``: ``requires_grad`` is set; ``value`` is True, False, None (unknown) or the :class:`Value` of a
              function's own parameter; ``how`` is ``attribute``, ``method`` or ``module_method``.
            - ``mode``: ``train()`` or ``eval()``; ``value`` True for train, False for eval, None unknown.
            - ``hold``: ``frostline.freeze`` or ``frostline.frozen``.
            - ``new``: a module was made and named: ``value`` is its :class:`Value`; ``replaces`` if the path is an
              attribute of another object than ``self`` in its ``__init__``.
            - ``renew``: a module got parameters of its own anew: ``how`` is ``resize`` (``resize_token_embeddings``; of
              the model's path), ``register`` (``register_parameter`` with a literal name) or ``parameter`` (one was
              assigned).
            - ``new_parameter``: an ``nn.Parameter`` was made and named.
            - ``optimizer``: one was made: ``sources`` (list of :class:`Value`), ``cls``, ``options`` (literals by
              name).
            - ``add_group``: ``sources``, ``options``; the path is the optimizer's.
            - ``scheduler``: one was made; ``of`` is the optimizer's path, ``cls``.
            - ``zero_grad`` (``set_to_none``), ``step``, ``scheduler_step``, ``backward``, ``clip`` (``sources``),
              ``unscale``, ``scaler_step``, ``scaler_update``: of an optimizer, module, scheduler, loss, scaler.
              ``step`` and ``scaler_step`` have the optimizer's path.
            - ``forward``: a module was called; ``direct`` where ``.forward`` was.
            - ``functional``: a module was called with parameters of another (``functional_call``).
            - ``load``: ``load_state_dict``; ``strict``, ``assign`` (literals or None), ``used`` whether the result is,
              ``of`` the kind of the receiver, ``source`` the :class:`Value` of what is loaded.
            - ``state_dict``: one was taken; ``save``: ``torch.save`` and its kin; ``value`` of what is saved.
            - ``move``: ``to``, ``cuda``, ``half`` ...
            - ``wrap``: the path is the wrapper, ``of`` the module; ``how`` is ``ddp``, ``dp``, ``fsdp``, ``compile``,
              ``averaged`` or ``prepare``; ``options`` (literals by name).
            - ``update_bn``: statistics are estimated anew.
            - ``write``: values are written by hand into parameters; ``how`` is the method or ``assign``.
            - ``metric``: something is counted or compared that only validation needs.
            - ``call``: a function of the files that are linted is called (flows replace it by what that does).
            - ``unknown``: a function that nobody here knows is given a model or optimizer; ``paths``, ``name``.
        path: whom it is done to.
        line: where, from 1, in the file of the flow.
        column: likewise, in UTF-8 bytes from 0, as `ast` counts.
        node: what did it, in the file of the flow: of an event inside of another file's function, the call.
        loops: the loops it stands in, the outermost first.
        conditions: the branches it stands in.
        no_grad: gradients are switched off here.
        function: the function it stands in, as ``Class.method``; ``<module>`` outside of any.
        via: the calls it was reached through, the outermost first, as ``name:line``.
        origin: ``file:line`` where it really stands, if that is another file.
        data: what is said above of its kind.
    """

    what: str
    path: str
    line: int
    column: int
    node: ast.AST | None = field(default=None, compare=False, repr=False)
    loops: tuple[Loop, ...] = ()
    conditions: tuple[Condition, ...] = ()
    no_grad: bool = False
    function: str = "<module>"
    via: tuple[str, ...] = ()
    origin: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """One of its data."""
        return self.data.get(name, default)

    @property
    def whole(self) -> bool:
        """Whether it reaches all of what its path names: no condition or filter inside of a loop over its parts."""
        if self.data.get("filtered"):
            return False
        inner = [loop for loop in self.loops if loop.over is not None and loop.over.kind in _PARTS]
        if not inner:
            return True
        if any(loop.over is not None and loop.over.filtered for loop in inner):
            return False
        return len(self.conditions) <= inner[0].conditions


_PARTS = frozenset({"parameters", "named_parameters", "modules", "named_modules"})


@dataclass(frozen=True)
class Flow:
    """What one piece of code does from its start to its end, with what it calls put in place.

    Attributes:
        name: the function it begins with, as ``Class.method``; ``<module>`` for a script.
        events: in order.
        has_callers: the function is called from another of the files: what happened before is not known.
        parameters: the names of the parameters it is called with.
        owner: the class whose method it is; "" if none.
        is_complete: nothing was cut off because it became too long.
        aliases: other paths by which things are known, and the paths that events have: of ``self.net = net``,
            ``self.net`` to ``net``.
    """

    name: str
    events: tuple[Event, ...]
    has_callers: bool = False
    parameters: tuple[str, ...] = ()
    owner: str = ""
    is_complete: bool = True
    aliases: dict[str, str] = field(default_factory=dict)

    def of(self, *kinds: str) -> list[Event]:
        """Its events of these kinds, in order."""
        return [event for event in self.events if event.what in kinds]
