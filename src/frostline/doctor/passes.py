"""What the forward passes of a loop were for: which trained, which validated, and which layers cared about the mode."""

from __future__ import annotations

from bisect import bisect_right

from frostline.audit.events import Backward, Forward, Step, UpdateBN
from frostline.audit.seen import Draw, ModelSeen, ModuleSeen, Phase, Seen
from frostline.doctor.telling import counted, some
from frostline.state import names


def mode_matters(module: ModuleSeen) -> bool:
    """Whether a module does something else in train mode than in eval mode: it drops, or it moves statistics.

    Example:
        >>> mode_matters(ModuleSeen("a", "Dropout", frozenset({"dropout"}))), mode_matters(ModuleSeen("b", "Linear"))
        (True, False)
    """
    # A FrozenBatchNorm has statistics and looks at no flag.
    return "dropout" in module.kinds or ("stats" in module.kinds and "Frozen" not in module.type)


def dropping(model: ModelSeen, phase: Phase) -> tuple[str, ...]:
    """The modules for which the mode matters that ran in a phase and were in train mode, in the order of the model."""
    there = frozenset(phase.train_modules)
    return tuple(
        path
        for path, module in model.modules.items()
        if path in there and mode_matters(module) and names.is_under(path, phase.path)
    )


def layers(model: ModelSeen, paths: tuple[str, ...]) -> str:
    """How many layers of which kind.

    Example:
        >>> model = ModelSeen("net", "Net", {}, {"a": ModuleSeen("a", "Dropout", frozenset({"dropout"}))})
        >>> layers(model, ("a",))
        '1 dropout layer'
    """
    drops = [path for path in paths if "dropout" in model.modules[path].kinds]
    norms = [path for path in paths if path not in set(drops)]
    parts = [
        counted(len(found), noun) for found, noun in ((norms, "normalization layer"), (drops, "dropout layer")) if found
    ]
    return " and ".join(parts)


def classes(model: ModelSeen, paths: tuple[str, ...]) -> str:
    """Modules by their classes and paths.

    Example:
        >>> classes(ModelSeen("net", "Net", {}, {"a": ModuleSeen("a", "Linear")}), ("a",))
        'Linear: a'
    """
    return f"{', '.join(sorted({model.modules[path].type for path in paths}))}: {some(paths)}"


def attends(draw: Draw) -> bool:
    """Whether it is attention that drops; computed step by step, its dropout looks like any."""
    return draw.what == "attention" or "scaled_dot_product_attention" in draw.place.text


def own_steps(seen: Seen, model: ModelSeen) -> list[Step]:
    """The steps of the optimizers that have a parameter of the model."""
    mine = {
        optimizer.name
        for optimizer in seen.optimizers
        if any(name == model.name for group in optimizer.groups for name, _ in group.paths)
    }
    return seen.of(Step, lambda step: step.optimizer in mine)


class Passes:
    """The phases of one model, told apart by what they were for.

    Attributes:
        steps: the steps of its optimizers.
        training: phases with gradients in which one of its optimizers stepped, so that it used gradients that came from
            this mode. Adversarial examples, which only need gradients of the input, are not among them.
        validation: phases without gradients that look at a model that is being trained, and feed no training.

    What a loop computes without gradients to train on (targets of its own, samples for a discriminator, what an agent
    does) is told from validation by what comes around it: a backward pass before this model runs with gradients again,
    a step each time, or the same line before the first step, and steps after the last time. ``update_bn`` is no
    validation, nor is a pass before the first step.
    """

    def __init__(self, seen: Seen, model: ModelSeen) -> None:
        self.steps = own_steps(seen, model)
        self._phases = model.phases
        self._steps = [step.at for step in self.steps]
        self._backwards = [event.at for event in seen.of(Backward)]
        self._grads = [event.at for event in seen.of(Forward, lambda e: e.model == model.name and e.grad)]
        self._updates = {event.place for event in seen.of(UpdateBN)}
        self._without = [phase.first for phase in model.phases if not phase.grad]
        # Parts that are called one after the other, an encoder and a head, do not end each other's phases.
        paths = {phase.path for phase in model.phases}
        self._begins = {path: [p.first for p in model.phases if _touch(p.path, path)] for path in paths}
        self.training = [phase for phase in model.phases if self._trains(phase)]
        begun = self._steps[0] if self._steps else 0
        self._before = {phase.place for phase in model.phases if not phase.grad and phase.first < begun}
        self.validation = [phase for phase in model.phases if self._validates(phase)]

    def end(self, phase: Phase) -> float:
        """The number of the event with which the next phase of the same part begins."""
        begins = self._begins[phase.path]
        following = bisect_right(begins, phase.first)
        return begins[following] if following < len(begins) else float("inf")

    def steps_in(self, phase: Phase) -> list[Step]:
        """The steps that were done in a phase."""
        return self.steps[bisect_right(self._steps, phase.first) : bisect_right(self._steps, self.end(phase))]

    def _trains(self, phase: Phase) -> bool:
        return phase.grad and bool(self.steps_in(phase))

    def _validates(self, phase: Phase) -> bool:
        done = bisect_right(self._steps, phase.first)
        # A name that was imported before the watch calls past its tap, but stands in the line all the same.
        if phase.grad or not done or phase.place in self._updates or "update_bn(" in phase.place.text:
            return False
        following = bisect_right(self._backwards, phase.first)
        if following == len(self._backwards):
            return True
        again = bisect_right(self._grads, phase.first)
        if phase.place in self._before or again == len(self._grads) or self._backwards[following] < self._grads[again]:
            return False
        earlier = bisect_right(self._without, self._steps[done - 1])
        since = self._without[earlier - 1] if earlier else -1
        # Two optimizers that step after one backward pass make one round.
        return len({bisect_right(self._backwards, at) for at in self._steps[:done] if at > since}) > 1


def _touch(path: str, other: str) -> bool:
    return names.is_under(path, other) or names.is_under(other, path)


def giving_passes(seen: Seen, model: ModelSeen) -> bool:
    """Whether a model that is not trained runs in the training steps of others, not only now and then."""
    steps = {step.step for step in seen.steps}
    ran = {event.step for event in seen.of(Forward) if event.model == model.name}
    return bool(steps) and 2 * len(ran & steps) >= len(steps)
