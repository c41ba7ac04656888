"""What was done to models and optimizers while a loop was watched: one small record for each call.

Paths are dotted paths in the model that the record names; an object that belongs to no model that was seen has an
empty ``model`` and, as ``path``, what is known of it. Nothing here refers to a tensor or a module. Longer than most
files: one small class for each kind of call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from frostline.audit.places import NOWHERE, Place


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that was done.

    Attributes:
        at: its number among all events, from 0; what has a smaller number came first.
        step: how many optimizer steps had been completed.
        place: the user's line.
    """

    at: int
    step: int
    place: Place = NOWHERE


@dataclass(frozen=True, kw_only=True)
class ModeCall(Event):
    """``train()`` or ``eval()``, or a flag that somebody wrote.

    Attributes:
        model: the model.
        path: the module it was called on; empty for the model itself.
        mode: the mode asked for; ``True`` is train.
        flipped: the modules whose flag changed.
        changed: tensors and settings that the call itself changed (an adapter that merges in ``eval()``).
        direct: the flag was written without the method; the place is then not known, or found in the source.
        guarded: a hold, or an override of ``train``, kept some of the modules below out of it.
    """

    model: str
    path: str
    mode: bool
    flipped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    direct: bool = False
    guarded: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GradFlag(Event):
    """``requires_grad`` of a parameter was written, also where it had that value already.

    Attributes:
        model: the model.
        path: the parameter.
        value: what was written.
        before: what it was.
        left: whether the gradient that it had when it was frozen was other than zero; ``None`` where it had none, or
            was not frozen.
    """

    model: str
    path: str
    value: bool
    before: bool
    left: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Registration(Event):
    """A parameter, buffer or module was put into a module that existed.

    Attributes:
        model: the model.
        path: the path it was put at.
        kind: ``parameter``, ``buffer`` or ``module``.
        replaced: whether something was there before.
        frozen_before: whether what was replaced had no trainable parameter, and had at least one.
        trainable: whether what came has a trainable parameter.
        frozen_around: whether the module that took it had parameters, and all frozen.
    """

    model: str
    path: str
    kind: str
    replaced: bool
    frozen_before: bool
    trainable: bool
    frozen_around: bool


@dataclass(frozen=True, kw_only=True)
class Forward(Event):
    """A forward pass of a model, called from outside of any other module.

    Attributes:
        model: the model.
        path: the module that was called; empty for the model itself.
        training: its mode.
        grad: whether gradients were enabled.
        inference: whether inference mode was.
        rows: the length of the first dimension of the first tensor; 0 where there is none.
        shapes: the shapes of the tensors among its arguments.
        past_wrapper: it is the module inside of a data-parallel wrapper, called directly and not through the wrapper.
    """

    model: str
    path: str
    training: bool
    grad: bool
    inference: bool
    rows: int
    shapes: tuple[tuple[int, ...], ...]
    past_wrapper: bool = False


@dataclass(frozen=True, kw_only=True)
class Backward(Event):
    """A backward pass.

    Attributes:
        outside: the shapes of trainable leaves that it reaches and that no watched model has (first pass only).
        left: how many parameters of optimizers still had a gradient other than zero that a step has used already;
            looked at in the first pass after a step.
        mean: whether the loss is a mean; ``None`` where its graph does not say.
        count: over how many elements it is a mean; 0 where that is not known.
        scale: what the mean was multiplied by afterwards; ``None`` where that is not known.
        in_step: it happened inside of an optimizer's step: a closure.
    """

    outside: tuple[tuple[int, ...], ...] = ()
    left: int = 0
    mean: bool | None = None
    count: int = 0
    scale: float | None = None
    in_step: bool = False


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """A step of an optimizer; ``step`` is its number among all steps, from 0.

    Attributes:
        optimizer: its name.
        rates: the learning rate of each group, as it was for this step.
        forwards: forward passes with gradients since this optimizer's last step.
        backwards: backward passes since then.
        rows: the rows of those forward passes, one after the other.
        tensors: how many parameters it owns.
        without_grad: how many of them had no gradient.
        all_zero: whether all gradients that there were are zero; looked at only where a ``zero_grad`` came after the
            last backward, ``None`` otherwise.
        grad_norm: the norm of the gradients of what it owns; ``None`` where it was not taken.
        stale: those of its parameters that are frozen, yet had a gradient (also one of zeros), as ``(model, path)``.
        stale_moved: those of them that this very step changed, as ``(model, path, largest absolute change)``.
        carried: how many of its parameters had a gradient that still contains the one of its step before; ``None`` for
            the first step that was seen.
        unscaled: ``False`` where a gradient scaler scaled and did not unscale before this step.
    """

    optimizer: str
    rates: tuple[float, ...]
    forwards: int
    backwards: int
    rows: tuple[int, ...]
    tensors: int
    without_grad: int
    all_zero: bool | None = None
    grad_norm: float | None = None
    stale: tuple[tuple[str, str], ...] = ()
    stale_moved: tuple[tuple[str, str, float], ...] = ()
    carried: int | None = None
    unscaled: bool = True


@dataclass(frozen=True, kw_only=True)
class ZeroGrad(Event):
    """``zero_grad`` of an optimizer or of a module; ``owner`` is the optimizer's name, or the model's.

    Attributes:
        owner: whose it was.
        of_optimizer: whether it was an optimizer's.
        set_to_none: whether gradients become ``None``, not zeros.
    """

    owner: str
    of_optimizer: bool
    set_to_none: bool


@dataclass(frozen=True, kw_only=True)
class Clip(Event):
    """``clip_grad_norm_`` or ``clip_grad_value_``.

    Attributes:
        tensors: how many parameters had a gradient and were clipped.
        unowned: those of them that belong to no optimizer, as ``(model, path)``.
        scale: the scale that the gradients still carried: 1.0 where there is no gradient scaler or it has unscaled.
    """

    tensors: int
    unowned: tuple[tuple[str, str], ...]
    scale: float


@dataclass(frozen=True, kw_only=True)
class SchedulerStep(Event):
    """A step of a learning-rate scheduler.

    Attributes:
        scheduler: its class name, with a number from the second of a class on.
        optimizer: the optimizer that it schedules.
        groups: for how many groups it was made.
        before: the rates before.
        after: the rates after.
        steps_done: how many steps its optimizer had done.
        own: how many steps this scheduler has done, the first is 1 (the one of its constructor is not counted).
    """

    scheduler: str
    optimizer: str
    groups: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    steps_done: int
    own: int


@dataclass(frozen=True, kw_only=True)
class SchedulerMade(Event):
    """A learning-rate scheduler was made; ``last_epoch`` is what it was told to begin after, -1 at the start."""

    scheduler: str
    optimizer: str
    groups: int
    last_epoch: int = -1


@dataclass(frozen=True, kw_only=True)
class GroupAdded(Event):
    """A group came into an optimizer; ``constructed`` where its constructor did it.

    Attributes:
        optimizer: the optimizer.
        group: the number of the group.
        rate: its learning rate.
        constructed: whether the constructor did it.
        paths: the parameters, as ``(model, path)``; an empty model for those of no model that was seen.
        trainable: how many of them required gradients then.
    """

    optimizer: str
    group: int
    rate: float
    constructed: bool
    paths: tuple[tuple[str, str], ...]
    trainable: int


@dataclass(frozen=True, kw_only=True)
class Load(Event):
    """``load_state_dict`` of a module.

    Attributes:
        model: the model.
        path: the module; empty for the model itself.
        exact: whether every key had to match (``strict``, as torch calls it).
        assign: whether tensors were replaced, not written.
        given: how many tensors came.
        wanted: how many tensors the module has.
        missing: keys that did not come.
        unexpected: keys that came and have no place.
        changed: how many tensors have other bytes than before; ``None`` where that was not looked at.
        not_finite: paths that are not finite now.
        huge: paths whose largest magnitude is absurd (above 1e4 in a parameter).
        own: whether the dictionary shares memory with the module itself: loading it does nothing.
        error: what it raised; empty if nothing.
    """

    model: str
    path: str
    exact: bool
    assign: bool
    given: int
    wanted: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    changed: int | None = None
    not_finite: tuple[str, ...] = ()
    huge: tuple[str, ...] = ()
    own: bool = False
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class OptimizerLoad(Event):
    """``load_state_dict`` of an optimizer.

    Attributes:
        optimizer: the optimizer.
        before: the hyperparameters of each group before, numbers and truth values only.
        after: the same after.
        misfits: parameters whose state has another shape than they have, as ``(model, path)``.
        renamed: whether names of parameters were stored and differ in order or spelling; tokens of wrappers do not
            count.
        given: how many parameters each group has that came.
        error: what it raised; empty if nothing.
    """

    optimizer: str
    before: tuple[dict[str, float], ...]
    after: tuple[dict[str, float], ...]
    misfits: tuple[tuple[str, str], ...] = ()
    renamed: bool = False
    given: tuple[int, ...] = ()
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class SchedulerLoad(Event):
    """``load_state_dict`` of a learning-rate scheduler (by its name) or of a gradient scaler (``GradScaler``)."""

    of: str


@dataclass(frozen=True, kw_only=True)
class StateDictKept(Event):
    """A ``state_dict()`` whose tensors are the live ones was still kept after later optimizer steps.

    It stands at the call of ``state_dict()``.

    Attributes:
        model: the model.
        path: the module; empty for the model itself.
        steps_after: how many optimizer steps were done while it was kept.
    """

    model: str
    path: str
    steps_after: int


@dataclass(frozen=True, kw_only=True)
class Save(Event):
    """Tensors went into a file (``torch.save``, ``safetensors``).

    Attributes:
        file: its name.
        top_keys: the keys of the outermost dictionary, as far as they are strings.
        saved: for each model that tensors of it went into the file, the paths.
        states: which of ``model``, ``optimizer``, ``scheduler``, ``scaler`` the file has, told by what was asked for
            its ``state_dict`` before and is in it.
        merged: modules that say ``merged=True`` at the time, as ``(model, path)``.
        whole_module: whether a module itself was pickled.
    """

    file: str
    top_keys: tuple[str, ...]
    saved: dict[str, tuple[str, ...]]
    states: tuple[str, ...]
    merged: tuple[tuple[str, str], ...] = ()
    whole_module: bool = False


@dataclass(frozen=True, kw_only=True)
class FunctionalCall(Event):
    """``torch.func.functional_call``.

    Attributes:
        model: the model.
        path: the module; empty for the model itself.
        replaced: the entries that were given.
        buffers_left: buffers that a forward pass in train mode moves and that were not given.
        training: the mode of the module.
        grad: whether gradients were enabled.
        own: all tensors that were given are the module's own: an ordinary call in other words.
    """

    model: str
    path: str
    replaced: int
    buffers_left: tuple[str, ...]
    training: bool = True
    grad: bool = True
    own: bool = False


@dataclass(frozen=True, kw_only=True)
class Wrapped(Event):
    """A model was wrapped: ``DistributedDataParallel``, ``DataParallel``, ``fully_shard``, ``compile``.

    Attributes:
        model: the model that was wrapped.
        wrapper: the wrapper's class or function name.
        trainable: paths that required gradients then.
        settings: switches of the wrapper: ``broadcast_buffers``, ``find_unused_parameters``, ``static_graph`` of DDP.
    """

    model: str
    wrapper: str
    trainable: tuple[str, ...]
    settings: dict[str, bool] = field(default_factory=dict[str, bool])


@dataclass(frozen=True, kw_only=True)
class UpdateBN(Event):
    """``torch.optim.swa_utils.update_bn``."""

    model: str
