"""What all listeners share: the models and optimizers of a loop, its events, and the account of the watch itself.

Nothing that listening does reaches the run: it draws no random number, writes to no tensor and sets no flag. What goes
wrong in it is kept as a sentence in ``missed`` and never raised into the user's loop.
"""

from __future__ import annotations

import re
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.audit.contract import Contract
from frostline.audit.discovery import optimizers_of, outermost, owners_of, variable_of
from frostline.audit.events import Event
from frostline.audit.model_watch import ModelWatch
from frostline.audit.optimizer_watch import OptimizerWatch
from frostline.audit.places import NOWHERE, Place, kind_of, user_place
from frostline.audit.tracing import frames_compiled
from frostline.errors import SelectionError, UnsupportedModel
from frostline.state import names

# So many events are kept; in a longer loop the oldest give way.
_KEPT_EVENTS = 50_000
# Parameters that must stay are digested at every so many steps; their versions are looked at in every one.
EVERY = 10


class Pending:
    """An event whose paths are not known yet, because its model may not have been seen so far.

    Attributes:
        make: the event's class.
        item: the module or tensor it concerns, weakly.
        fields: all other fields.
        items: modules and tensors that become paths: field to weak references.
        below: what to put behind the path of the item.
        known: the model and path of the item, where they were known at once: a parameter may be gone at the end.
    """

    def __init__(
        self,
        make: type[Event],
        item: Any,
        fields: dict[str, Any],
        items: dict[str, list[Any]],
        below: str,
        known: tuple[str, str],
    ) -> None:
        self.make = make
        self.item = weakref.ref(item)
        self.kind = type(item).__name__
        self.fields = fields
        self.items = {name: [weakref.ref(value) for value in values] for name, values in items.items()}
        self.below = below
        self.known = known


class Recorder:
    """The account of one watch.

    Attributes:
        models: the models seen so far.
        optimizers: the optimizers seen so far.
        events: what was heard, in order.
        count: the number of the next event.
        steps: how many optimizer steps were completed.
        cost: seconds that listening took.
        missed: what could not be looked at, a sentence each.
        live: whether anything is to be recorded; off while the recorder itself works.
    """

    def __init__(self, *, contract: Contract | None = None, every: int = EVERY, trace: bool = True) -> None:
        self.contract = contract
        self.every = every
        self.trace = trace
        self.models: list[ModelWatch] = []
        self.optimizers: list[OptimizerWatch] = []
        self.events: deque[Event | Pending] = deque(maxlen=_KEPT_EVENTS)
        self.count = 0
        self.steps = 0
        self.cost = 0.0
        self.missed: dict[str, None] = {}
        # Why the contract that was declared does not fit the model.
        self.refused: SelectionError | None = None
        self.warnings: list[str] = []
        self.sources: dict[str, None] = {}
        self.live = False
        self.due: Callable[[], None] | None = None
        self.forward_place = NOWHERE
        self.in_step: OptimizerWatch | None = None
        self.in_functional = 0
        # Modules that were put into eval mode on their own: id to the module, until they are put back.
        self.put_into_eval: dict[int, weakref.ref[nn.Module]] = {}
        # Lines that asked modules for what they have: module, method, file and number to the module and the line.
        self.walks: dict[tuple[int, str, str, int], tuple[weakref.ref[nn.Module], Place]] = {}
        # What was put in the place of parameters: the old tensor, its module and its name there.
        self.replaced: list[tuple[weakref.ref[Any], weakref.ref[nn.Module], str]] = []
        self._frames = frames_compiled()
        self._ignored: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._owned: set[int] | None = None
        self._nested = 0

    def work(self) -> _Work:
        """While the recorder works: its time is counted, it is not listened to, and its faults stay its own."""
        return _Work(self)

    def place(self) -> Place:
        """The user's line; its file is remembered as one of the loop's sources."""
        place = user_place(2)
        if place.file and kind_of(place.file) == "user":
            self.sources.setdefault(place.file)
        return place

    def add(self, make: type[Event], *, place: Place | None = None, **fields: Any) -> None:
        """Enter an event."""
        place = self.place() if place is None else place
        self.events.append(make(at=self.count, step=self.steps, place=place, **fields))
        self.count += 1

    def add_pending(
        self, make: type[Event], item: Any, items: dict[str, list[Any]] | None = None, below: str = "", **fields: Any
    ) -> None:
        """Enter an event of a module or tensor whose model may not be known yet."""
        fields |= {"at": self.count, "step": self.steps, "place": self.place()}
        self.events.append(Pending(make, item, fields, items or {}, below, self.place_of(item)))
        self.count += 1

    # -- models -------------------------------------------------------------------------------------------------------

    def known(self, models: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
        """Enter what the user has named, and the optimizers that have parameters of it."""
        for model in models:
            self._enter(names.unwrap(model), outer=model)
        for optimizer in optimizers:
            self.optimizer(optimizer)
        if self.contract is not None and self.models:
            self.models[0].check_contract(self.contract)
        parameters = {id(p) for watch in self.models for p in watch.model.parameters()}
        if parameters:
            for optimizer in optimizers_of(parameters):
                self.optimizer(optimizer)

    def watch_of(self, item: Any) -> ModelWatch | None:
        """The model that a module or a tensor is, or was, a part of."""
        for watch in self.models:
            if watch.model is item or watch.path_of(item) is not None:
                return watch
        return None

    def place_of(self, item: Any) -> tuple[str, str]:
        """The model and the path of a tensor or module; both empty where no model has or had it."""
        watch = self.watch_of(item)
        return ("", "") if watch is None else (watch.name, watch.path_of(item) or "")

    def discover(self, module: nn.Module) -> ModelWatch | None:
        """The model of a module that was called; ``None`` for a loss or another module without state."""
        if module in self._ignored:
            return None
        try:
            inner = names.unwrap(module)
        except UnsupportedModel:
            self._ignored.add(module)
            self.missed.setdefault(f"{type(module).__name__} is a module of torch.jit: it cannot be looked into")
            return None
        watch = self.watch_of(inner)
        if watch is None:
            stateless = next(inner.parameters(), None) is None and next(inner.buffers(), None) is None
            if stateless or self._is_hidden(inner):
                self._ignored.add(module)
                return None
            top = outermost([module])[id(module)]
            watch = self._enter(top, outer=module if inner is top else top)
        if module is not inner and not watch.wrapper:
            watch.wrapper = type(module).__name__
        watch.compiled = watch.compiled or "_orig_mod" in module._modules
        return watch

    def discover_owners(self, tensors: Iterable[Any]) -> None:
        """Enter the models that have these parameters, where any has."""
        wanted = {id(t) for t in tensors if self.watch_of(t) is None}
        if not wanted:
            return
        found = {key: module for key, module in owners_of(wanted).items() if not self._is_hidden(module)}
        tops = outermost(found.values())
        for module in found.values():
            if self.watch_of(module) is None:
                self._enter(tops[id(module)], outer=tops[id(module)])

    def _enter(self, model: nn.Module, *, outer: nn.Module) -> ModelWatch:
        known = self.watch_of(model)
        if known is not None:
            return known
        frame = sys._getframe(1)
        name = variable_of(outer, frame, "") or variable_of(model, frame, "model")
        watch = ModelWatch(model, free_name(name, {m.name for m in self.models}))
        if outer is not model:
            watch.wrapper = type(outer).__name__
        for module in watch.parts_in_eval():
            self.put_into_eval.setdefault(id(module), weakref.ref(module))
        # What it has inside was perhaps taken for a model of its own before.
        self.models = [m for m in self.models if not watch.has(m.model)]
        self.models.append(watch)
        return watch

    def _is_hidden(self, module: nn.Module) -> bool:
        """Whether a plain list or dict of a known model keeps the module, or one above it."""
        return any(module is part for watch in self.models for part in watch.hidden_modules())

    def is_compiled(self, watch: ModelWatch) -> bool:
        """Whether a model runs compiled, or anything was compiled since the watch began: it may be part of a step."""
        return watch.compiled or frames_compiled() > self._frames

    # -- optimizers ---------------------------------------------------------------------------------------------------

    def optimizer(self, optimizer: Optimizer) -> OptimizerWatch:
        """The watch of an optimizer, entered if it is new."""
        for watch in self.optimizers:
            if watch.optimizer is optimizer:
                return watch
        name = variable_of(optimizer, sys._getframe(1), "") or _assigned_to(user_place()) or "optimizer"
        watch = OptimizerWatch(optimizer, free_name(name, {o.name for o in self.optimizers}))
        self.optimizers.append(watch)
        self.owners_changed()
        return watch

    def name_anew(self, watch: OptimizerWatch) -> None:
        """Ask again for the variable that holds an optimizer: while it was constructed, none did."""
        name = variable_of(watch.optimizer, sys._getframe(1), watch.name)
        if name == watch.name:
            return
        old, watch.name = watch.name, free_name(name, {o.name for o in self.optimizers})
        for place, event in enumerate(self.events):
            if isinstance(event, Pending):
                if event.fields.get("optimizer") == old:
                    event.fields["optimizer"] = watch.name
            elif getattr(event, "optimizer", None) == old or getattr(event, "owner", None) == old:
                field = "optimizer" if hasattr(event, "optimizer") else "owner"
                self.events[place] = replace(event, **{field: watch.name})

    def groups_changed(self) -> None:
        """What optimizers own is to be read anew."""
        self._owned = None

    def owners_changed(self) -> None:
        """An optimizer came, or took up more: the contract that was inferred may not fit any more."""
        self.groups_changed()
        for watch in self.models:
            watch.unsettle(self.steps)

    def owned(self) -> set[int]:
        """Ids of all parameters that optimizers have."""
        if self._owned is None:
            self._owned = {id(p) for watch in self.optimizers for p in watch.parameters}
        return self._owned

    def take_contract(self, watch: ModelWatch) -> None:
        """Decide what must stay in a model, now."""
        parts = [module for ref in self.put_into_eval.values() if (module := ref()) is not None]
        mentioned = [path for module in parts if (path := watch.path_of(module))]
        # What is declared is about the model that the user named; a second one may have other paths.
        declared = self.contract if watch is self.models[0] else None
        try:
            watch.take_contract(self.count, declared, self.owned(), mentioned)
        except SelectionError as error:
            self.refused = error
            watch.take_contract(self.count, None, self.owned(), mentioned)


class _Work:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        recorder = self._recorder
        recorder._nested += 1
        self._live, recorder.live = recorder.live, False
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        recorder = self._recorder
        recorder.live = self._live
        recorder._nested -= 1
        if not recorder._nested:
            recorder.cost += time.perf_counter() - self._start
        if not isinstance(error, Exception):
            return False
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f" at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else ""
        recorder.missed.setdefault(f"the watch itself failed{where}: {type(error).__name__}: {error}")
        return True


def free_name(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken.

    Example:
        >>> free_name("model", {"model"})
        'model_2'
    """
    if name not in taken:
        return name
    return next(f"{name}_{i}" for i in range(2, len(taken) + 3) if f"{name}_{i}" not in taken)


def _assigned_to(place: Place) -> str:
    """The variable that a line assigns to: while an object is constructed, none holds it yet."""
    found = re.match(r"([A-Za-z_][\w.]*)\s*=[^=]", place.text)
    return found[1] if found else ""
