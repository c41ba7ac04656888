"""Trainable parameters that get gradients and are in no optimizer, and why: replaced, unfrozen, forgotten, or meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from frostline.audit.events import Event, GradFlag, Load, Registration
from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import ModelSeen, OptimizerSeen, Seen, TensorSeen, total
from frostline.doctor.telling import parts_of
from frostline.state import names


@dataclass(frozen=True)
class LeftOut:
    """Parameters of one model that get gradients and are in no optimizer, all for the same reason.

    Attributes:
        model: the model.
        tensors: the parameters.
        why: ``assigned`` (loading put new tensors in the place of those that the optimizer has), ``replaced`` (their
            module was), ``unfrozen`` (they were frozen when the optimizer was made), ``forgotten``, or ``meant``:
            whoever trains a head alone by giving nothing else to the optimizer does nothing wrong.
        cause: the call that did it, where there was one.
        optimizer: the optimizer that has, or had, most parameters of the model.
    """

    model: ModelSeen
    tensors: tuple[TensorSeen, ...]
    why: str
    cause: Event | None
    optimizer: OptimizerSeen

    @property
    def paths(self) -> tuple[str, ...]:
        """Their paths."""
        return tuple(t.path for t in self.tensors)

    @property
    def places(self) -> tuple[str, ...]:
        """Their paths as those of a finding: whole parts where they are whole."""
        return places_of(self.paths, self.model)

    @property
    def lost(self) -> tuple[str, ...]:
        """Paths that the optimizer's orphans had in this model."""
        return tuple(path for name, path in self.optimizer.orphans_were if name == self.model.name)


def left_out(seen: Seen) -> list[LeftOut]:
    """All of them, by model, reason and the call that caused it."""
    found: list[LeftOut] = []
    for model in seen.models:
        home = home_of(model, seen)
        if home is None:
            continue
        groups: dict[tuple[str, Place], tuple[Event | None, list[TensorSeen]]] = {}
        rest: list[TensorSeen] = []
        causes = _Causes(model, home, seen)
        for tensor in _unowned(model):
            why, cause = causes.of(tensor)
            if why:
                groups.setdefault((why, cause.place if cause else NOWHERE), (cause, []))[1].append(tensor)
            else:
                rest.append(tensor)
        found += [LeftOut(model, tuple(ts), why, cause, home) for (why, _), (cause, ts) in groups.items()]
        if rest:
            why = "meant" if _is_meant(rest, model, home) else "forgotten"
            found.append(LeftOut(model, tuple(rest), why, None, home))
    return found


def home_of(model: ModelSeen, seen: Seen) -> OptimizerSeen | None:
    """The optimizer that steps and has, or had, most parameters of a model."""
    counts = {
        o.name: sum(name == model.name for group in o.groups for name, _ in group.paths)
        + sum(name == model.name for name, _ in o.orphans_were)
        for o in seen.optimizers
        if o.steps
    }
    best = max(counts, key=lambda name: counts[name], default="")
    if counts.get(best):
        return seen.optimizer(best)
    return next((o for o in seen.optimizers if o.steps and _is_of_an_earlier_form(o, model)), None)


def _is_of_an_earlier_form(optimizer: OptimizerSeen, model: ModelSeen) -> bool:
    """Whether an optimizer has nothing but orphans, of the shapes of all parameters that the model trains."""
    trained = sorted(t.shape for t in model.parameters if t.trainable_now and t.gradients and t.owner is None)
    return bool(trained) and sorted(optimizer.orphans) == trained and not optimizer.orphans_were


def _unowned(model: ModelSeen) -> list[TensorSeen]:
    """Trainable, with gradients, without an owner, and moved by nobody: neither by a step nor by hand."""
    return [
        t
        for t in model.parameters
        if t.trainable_now and t.owner is None and t.gradients and not t.moved_in_step and not t.moved_between
    ]


class _Causes:
    """What was done to a model after its optimizer was made, read once for all of its tensors."""

    def __init__(self, model: ModelSeen, home: OptimizerSeen, seen: Seen) -> None:
        made = -1 if home.made_at is None else home.made_at
        events = [e for e in seen.events if e.at >= made and getattr(e, "model", "") == model.name]
        self._lost = {path for name, path in home.orphans_were if name == model.name}
        self._loads = [e for e in reversed(events) if isinstance(e, Load) and e.assign and not e.error]
        self._puts = [e for e in reversed(events) if isinstance(e, Registration) and e.kind != "buffer"]
        self._flags = {e.path: e for e in events if isinstance(e, GradFlag) and e.value and not e.before}
        self._all_new = _is_of_an_earlier_form(home, model)

    def of(self, tensor: TensorSeen) -> tuple[str, Event | None]:
        """The call that explains why the optimizer does not have a tensor; empty if none does."""
        for load in self._loads:
            if tensor.path in self._lost and names.is_under(tensor.path, load.path):
                return "assigned", load
        for put in self._puts:
            if names.is_under(tensor.path, put.path):
                came_for_another = put.replaced and any(names.is_under(path, put.path) for path in self._lost)
                return "replaced" if came_for_another else "forgotten", put
        if tensor.path in self._lost or self._all_new:
            return "assigned", None  # by `to_empty`, or a move from the meta device: nothing is registered anew
        flag = next((self._flags[path] for path in (tensor.path, *tensor.aliases) if path in self._flags), None)
        return ("unfrozen", flag) if flag is not None else ("", None)


def _is_meant(tensors: Sequence[TensorSeen], model: ModelSeen, home: OptimizerSeen) -> bool:
    """Whether leaving them out looks like a choice: to train a head, some biases, a prompt, and nothing else.

    What is left out in front of all that is trained is a trunk, unless the optimizer has groups with different rates,
    which are made to train everything, and only little is missing. Behind it, it is a choice if it is most tensors;
    in between, if it is most tensors or most elements (training biases or norm layers alone). A part in eval mode
    inside of a model in train mode is meant to be left alone.
    """
    if model.modules[""].training and all(not model.modules[t.module].training for t in tensors):
        return True
    owned = [t for t in model.parameters if t.trainable_now and t.owner is not None]
    if not owned:
        return False  # the optimizer has frozen parameters only, or orphans
    order = {t.path: i for i, t in enumerate(model.parameters)}
    first, last = min(order[t.path] for t in owned), max(order[t.path] for t in owned)
    many = len(tensors) > len(owned)
    big = total(tensors) > total(owned)
    if all(order[t.path] < first for t in tensors):
        return many or big or len(_rates(home)) < 2
    if all(order[t.path] > last for t in tensors):
        return many
    return many or big


def _rates(optimizer: OptimizerSeen) -> set[float]:
    return {g.settings.get("initial_lr", g.settings.get("lr", 0.0)) for g in optimizer.groups}


def places_of(paths: Iterable[str], model: ModelSeen) -> tuple[str, ...]:
    """Parameters as the paths of a finding: whole parts and all that is below them; of a whole model its parameters."""
    paths = tuple(paths)
    parts = parts_of(paths, model)
    return paths if "" in parts else parts


def in_code(model: str, path: str) -> str:
    """A module or tensor of a model as one types it.

    Example:
        >>> in_code("model", "trunk.0.conv"), in_code("model", "0"), in_code("net", "")
        ('model.trunk[0].conv', 'model[0]', 'net')
    """
    tokens = path.split(".") if path else []
    return model + "".join(f"[{token}]" if token.isdecimal() else f".{token}" for token in tokens)


def params_in_code(parts: Iterable[str], model: ModelSeen) -> str:
    """Parameters as an optimizer takes them: of one part its ``parameters()``, of several a list.

    Example:
        >>> from frostline.audit.seen import ModuleSeen
        >>> params_in_code(["fc"], ModelSeen("net", "Net", {}, {"fc": ModuleSeen("fc", "Linear")}))
        'net.fc.parameters()'
    """
    parts = list(parts)
    if len(parts) == 1 and parts[0] in model.modules:
        return f"{in_code(model.name, parts[0])}.parameters()"
    shown = [
        f"*{in_code(model.name, part)}.parameters()" if part in model.modules else in_code(model.name, part)
        for part in parts[:3]
    ]
    return f"[{', '.join(shown)}{', ...' if len(parts) > 3 else ''}]"
