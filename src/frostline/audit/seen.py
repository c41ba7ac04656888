"""What was seen of a loop: models, optimizers, events and writes, as plain values that rules and reports read.

Longer than most files: it is one record, and the whole of what a rule may know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from frostline.audit.events import Event, Forward, Step
from frostline.audit.places import NOWHERE, Place
from frostline.audit.prefixes import Prefixes

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class Write:
    """A write into a tensor of a model, seen by the dispatch mode.

    Attributes:
        path: the tensor.
        op: the operator, ``aten.native_batch_norm`` for example; empty where the write went past the dispatcher.
        place: the user's line.
        outside: the bytes changed although no operator wrote: numpy, ``untyped_storage()`` or another library.
        via_data: what was written to was neither the parameter nor a view of it, but shares its memory: ``.data``.
        in_optimizer: it happened in an optimizer's step.
    """

    path: str
    op: str
    place: Place = NOWHERE
    outside: bool = False
    via_data: bool = False
    in_optimizer: bool = False


@dataclass
class TensorSeen:
    """One parameter or buffer of a model, from the first training step to the end.

    Attributes:
        path: its dotted path.
        kind: ``parameter`` or ``buffer``.
        role: what it is for, ``norm.mean`` for example.
        module: the path of the module that owns it.
        module_type: the class name of that module.
        shape: its shape.
        must_stay: why it must stay, a key of :data:`~frostline.audit.contract.REASONS`; empty where it may move, also
            where its part was unfrozen and it had not moved until then.
        trainable: ``requires_grad`` when the contract was taken.
        trainable_now: the same at the end.
        owner: the optimizer and the group that have it at the end, or ``None``.
        owned_at_start: the same when the contract was taken.
        moved: its bytes are not what they were when the contract was taken; in a model that never trains, when it first
            ran.
        first_moved: the step after which that was first seen; ``None`` if it did not move.
        moved_in_step: during how many calls of ``optimizer.step()`` it changed.
        moved_between: how often it changed between steps (a forward pass, a write by hand).
        gradients: at how many steps it had a gradient.
        steps: how many steps were looked at.
        drift: step and largest absolute difference to the start, where it must stay and a copy was kept.
        writes: what the dispatch mode saw of writes into it, after a contradiction.
        aliases: other paths that share its memory.
        replaced: another tensor stands at this path now than when the contract was taken.
        numel: how many elements.
        non_finite: it holds a NaN or an infinity at the end; statistics and what must stay only.
        may_move: the contract names it among what may move.
        odd_at_start: ``nan``, ``inf`` or ``huge`` (above 1e4) when the contract was taken; parameters and statistics
            only.
        unit_norm: the Euclidean norm at the end, of the vectors that spectral normalization keeps; ``None`` elsewhere.
    """

    path: str
    kind: str
    role: str
    module: str
    module_type: str
    shape: tuple[int, ...]
    must_stay: str = ""
    trainable: bool = False
    trainable_now: bool = False
    owner: tuple[str, int] | None = None
    owned_at_start: tuple[str, int] | None = None
    moved: bool = False
    first_moved: int | None = None
    moved_in_step: int = 0
    moved_between: int = 0
    gradients: int = 0
    steps: int = 0
    drift: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    writes: list[Write] = field(default_factory=list[Write])
    aliases: tuple[str, ...] = ()
    replaced: bool = False
    numel: int = 0
    non_finite: bool = False
    may_move: bool = False
    odd_at_start: str = ""
    unit_norm: float | None = None


@dataclass
class ModuleSeen:
    """One module of a model.

    Attributes:
        path: its dotted path; empty for the model itself.
        type: its class name.
        kinds: what rules ask for: ``batchnorm`` (any ``_BatchNorm``), ``norm`` (any normalization layer), ``stats``
            (has running statistics), ``dropout`` (drops with a rate above 0 in train mode), ``averaged``
            (``AveragedModel``; ``averaged_buffers`` where it averages buffers too, ``averaged_weighted`` where it is no
            plain mean), ``spectral`` (spectral or weight norm), ``adapter`` (has a ``merged`` flag).
        training: its mode when the contract was taken, in the first training forward.
        training_now: its mode at the end.
        must_eval: why it must stay in eval mode (``hold``, ``declared``, ``eval``); empty if it need not, also where
            its part was unfrozen and it had stayed in eval mode until then.
        frozen: it has parameters below it, and when the contract was taken none of them required a gradient.
        frozen_above: no ancestor, or the module itself, trains: the nearest module above or at it that has parameters
            is frozen.
        runs_grad: forward passes with gradients enabled, in the passes that were looked at closely.
        runs_no_grad: the same with gradients off, inside of a pass of the model that had them enabled.
        runs_checkpoint: passes inside of reentrant activation checkpointing.
        runs: all of its passes in the passes that were looked at closely, validation too.
        odd: attributes that mean nothing to torch (``require_grad``, ``trainable``, ``requires_grad`` on a module).
        parameters: how many parameters are below it.
        overrides_train: its class has a ``train`` of its own.
        no_statistics: a batch norm without running statistics.
        sigma_gap: of spectral normalization, how far its estimate of the largest singular value is off, as a share,
            when its model first ran in eval mode, or at the end; ``None`` elsewhere.
    """

    path: str
    type: str
    kinds: frozenset[str] = frozenset()
    training: bool = True
    training_now: bool = True
    must_eval: str = ""
    frozen: bool = False
    frozen_above: bool = False
    runs_grad: int = 0
    runs_no_grad: int = 0
    runs_checkpoint: int = 0
    runs: int = 0
    odd: dict[str, Any] = field(default_factory=dict[str, Any])
    parameters: int = 0
    overrides_train: bool = False
    no_statistics: bool = False
    sigma_gap: float | None = None


@dataclass(frozen=True)
class OddAttribute:
    """An attribute that torch knows nothing of, on a parameter or a module.

    Attributes:
        path: the parameter or module.
        on: ``parameter`` or ``module``.
        name: the attribute.
        value: what it was set to, as text.
        place: the line that sets it, found in the source of the user's files; unknown where none or several do.
    """

    path: str
    on: str
    name: str
    value: str
    place: Place = NOWHERE


@dataclass(frozen=True)
class Phase:
    """Forward passes of one model in a row that have the same mode and the same gradient switch.

    Attributes:
        model: the model.
        path: the module that was called; empty for the model itself.
        training: its mode.
        grad: whether gradients were enabled.
        first: the number of its first event.
        step: steps done when it began.
        forwards: how many passes.
        place: the line of the first pass.
        moved: paths of statistics that moved in it.
        train_modules: paths of modules with parameters, statistics or dropout that were in train mode at its first
            pass.
        thawed: those of them whose part was unfrozen by then: that they train is meant.
    """

    model: str
    path: str
    training: bool
    grad: bool
    first: int
    step: int
    forwards: int
    place: Place
    moved: tuple[str, ...]
    train_modules: tuple[str, ...]
    thawed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draw:
    """Something that only training needs, seen in a forward pass of a model in eval mode.

    Attributes:
        path: the innermost module that was running.
        op: the operator: it draws random numbers (``aten.bernoulli_``), or normalizes with the batch
            (``aten.native_batch_norm``).
        what: ``dropout``, ``attention`` or ``batch_norm``.
        training: the mode of that module.
        place: the user's line.
    """

    path: str
    op: str
    what: str
    training: bool
    place: Place


@dataclass(frozen=True)
class NormInput:
    """What arrived at the first normalization layer with running statistics, against what that expects.

    Attributes:
        path: the layer.
        rows: values per channel that were averaged over.
        mean_gap: the median over channels of ``|batch mean - running mean| / running sd``.
        sd_ratio: the median over channels of ``batch sd / running sd``.
        counted: the layer's ``num_batches_tracked``; ``None`` where it has none.
        fresh: the running mean is 0 and the running variance 1 everywhere: never trained.
    """

    path: str
    rows: int
    mean_gap: float
    sd_ratio: float
    counted: int | None
    fresh: bool = False


@dataclass(frozen=True)
class Walk:
    """A line of the user's that asked a module for what it has.

    Attributes:
        model: the model.
        path: the module that was asked; empty for the model itself.
        method: how it was asked: ``parameters``, ``modules`` or ``children``, with or without ``named_``.
        place: the line.
    """

    model: str
    path: str
    method: str
    place: Place


@dataclass
class ModelSeen:
    """One model.

    Attributes:
        name: the name of the variable that holds it, where one was found; ``model`` otherwise. Unique.
        type: its class name.
        tensors: path to :class:`TensorSeen`.
        modules: path to :class:`ModuleSeen`.
        wrapper: ``DistributedDataParallel``, ``DataParallel``, ``OptimizedModule`` ... where forward passes came
            through one; empty if not.
        contract_at: the number of the event at which the contract was taken; ``None`` if it never trained.
        declared: whether any of the contract was declared (holds, or a contract that was given).
        odd: attributes that mean nothing to torch.
        phases: its forward passes, in runs of one kind.
        draws: what only training needs, in a pass in eval mode.
        norm_input: what arrived at its first normalization layer.
        forwards: how many forward passes from outside it had.
        backwards: how many backward passes reached it.
        hidden: modules that a plain list or dict keeps, as ``(path of the owner, attribute, parameters)``.
        tied: groups of paths that share memory.
        settings: settings (rates of dropout, momentum) that ``eval()`` and the way back to train mode changed, as
            ``(path, before, after)``.
        bypassed: modules whose ``forward`` was called directly, past every hook, with the line.
        traced: whether the dispatch mode looked at a step of it.
        compiled: whether it, or a part, is compiled.
        wrapped_lost: parameters that a wrapper took in and that the model no longer has, or has moved.
        live: the model itself, for remedies.
    """

    name: str
    type: str
    tensors: dict[str, TensorSeen]
    modules: dict[str, ModuleSeen]
    wrapper: str = ""
    contract_at: int | None = None
    declared: bool = False
    odd: list[OddAttribute] = field(default_factory=list[OddAttribute])
    phases: list[Phase] = field(default_factory=list[Phase])
    draws: list[Draw] = field(default_factory=list[Draw])
    norm_input: NormInput | None = None
    forwards: int = 0
    backwards: int = 0
    hidden: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])
    tied: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    settings: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    bypassed: list[tuple[str, Place]] = field(default_factory=list[tuple[str, Place]])
    traced: bool = False
    compiled: bool = False
    wrapped_lost: tuple[str, ...] = ()
    live: nn.Module | None = field(default=None, repr=False)

    @property
    def parameters(self) -> list[TensorSeen]:
        """Its parameters."""
        return [tensor for tensor in self.tensors.values() if tensor.kind == "parameter"]

    @property
    def buffers(self) -> list[TensorSeen]:
        """Its buffers."""
        return [tensor for tensor in self.tensors.values() if tensor.kind == "buffer"]

    @property
    def trained(self) -> bool:
        """Whether any of its parameters moved in an optimizer's step, or had a gradient at one."""
        return any(t.gradients or t.moved_in_step for t in self.parameters)

    def below(self, path: str) -> Iterator[TensorSeen]:
        """The tensors of a module and of all below it, in the order of the model."""
        return (self.tensors[found] for found in self._tensor_order.below(path))

    def inside(self, path: str) -> Iterator[ModuleSeen]:
        """The modules below a module, without itself, in the order of the model."""
        return (self.modules[found] for found in self._module_order.below(path) if found)

    @cached_property
    def _tensor_order(self) -> Prefixes:
        return Prefixes(self.tensors)

    @cached_property
    def _module_order(self) -> Prefixes:
        return Prefixes(self.modules)


@dataclass
class GroupSeen:
    """One group of an optimizer.

    Attributes:
        paths: its parameters, as ``(model, path)``; an empty model for a tensor that no model has (an orphan).
        settings: its hyperparameters at the end: numbers and truth values, also those that the optimizer ignores.
        ignored: names of settings that the optimizer's class knows nothing of (``freeze``).
        first_rates: the first rates, one for each of the first steps looked at.
        last_rate: the last.
    """

    paths: list[tuple[str, str]]
    settings: dict[str, float]
    ignored: tuple[str, ...] = ()
    first_rates: list[float] = field(default_factory=list[float])
    last_rate: float = 0.0


@dataclass
class OptimizerSeen:
    """One optimizer.

    Attributes:
        name: the name of the variable that holds it, where one was found; ``optimizer`` otherwise. Unique.
        type: its class name.
        groups: its groups at the end.
        steps: how many steps it did.
        made: where it was made; unknown where that was before the watch.
        made_at: the number of the event; ``None`` likewise.
        orphans: the shapes of tensors of it that no model has.
        orphans_were: the paths that these tensors had in a model at an earlier time, as ``(model, path)``, where known.
        schedulers: class names of the schedulers that were seen on it.
        modes: whether it has ``train()`` and ``eval()`` of its own (a schedule-free optimizer).
        in_train_mode: the mode it was in at each of its steps, where it has one.
        in_train_mode_at_eval: the mode it was in when a model of it ran in eval mode without gradients.
        live: the optimizer itself, for remedies.
    """

    name: str
    type: str
    groups: list[GroupSeen]
    steps: int = 0
    made: Place = NOWHERE
    made_at: int | None = None
    orphans: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    orphans_were: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    schedulers: list[str] = field(default_factory=list[str])
    modes: bool = False
    in_train_mode: list[bool] = field(default_factory=list[bool])
    in_train_mode_at_eval: list[bool] = field(default_factory=list[bool])
    live: Optimizer | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Crash:
    """What ended the loop before its time.

    Attributes:
        type: the class name of the exception.
        text: its message.
        place: the user's line.
        traceback: the whole traceback, without the frames of the watch.
    """

    type: str
    text: str
    place: Place
    traceback: str

    def to_dict(self) -> dict[str, Any]:
        """The crash as JSON-ready values."""
        return {"type": self.type, "text": self.text, "place": self.place.to_dict(), "traceback": self.traceback}


@dataclass(frozen=True)
class RankDigest:
    """What one process of a distributed run holds at the end of the watch.

    Attributes:
        rank: its rank.
        tensors: for each model, path to digest.
        trainable: for each model, the paths that require gradients.
        steps: how many steps it did.
    """

    rank: int
    tensors: dict[str, dict[str, str]]
    trainable: dict[str, tuple[str, ...]]
    steps: int


@dataclass
class Seen:
    """All that was seen of a loop.

    Attributes:
        models: the models that ran or that an optimizer has, those that train first.
        optimizers: the optimizers.
        events: every call that was seen, in order. The oldest give way in a very long loop.
        ended: ``finished``, ``stopped`` (by the doctor, after its steps), ``exited`` (``sys.exit``) or ``crashed``.
        crash: what ended it, where it crashed.
        cost: seconds that watching took.
        seconds: seconds from beginning to end.
        script: the script that was run; empty in a ``with`` block.
        warnings: the texts of the warnings of torch about the loop that were shown meanwhile.
        ranks: what every process holds, in a distributed run; empty otherwise.
        rank: the rank of this process.
        missed: what could not be looked at, and why, one sentence each.
        sources: the user's files that were on the stack.
        walks: which of the user's lines asked which module for its parameters or modules; one for each line.
    """

    models: list[ModelSeen] = field(default_factory=list[ModelSeen])
    optimizers: list[OptimizerSeen] = field(default_factory=list[OptimizerSeen])
    events: list[Event] = field(default_factory=list[Event])
    ended: str = "finished"
    crash: Crash | None = None
    cost: float = 0.0
    seconds: float = 0.0
    script: str = ""
    warnings: list[str] = field(default_factory=list[str])
    ranks: list[RankDigest] = field(default_factory=list[RankDigest])
    rank: int = 0
    missed: list[str] = field(default_factory=list[str])
    sources: tuple[str, ...] = ()
    walks: list[Walk] = field(default_factory=list[Walk])
    _kinds: tuple[tuple[int, int], dict[type[Event], list[Any]]] = field(default=((0, -1), {}), init=False, repr=False)

    def __repr__(self) -> str:
        models = ", ".join(f"{model.name} ({model.type})" for model in self.models)
        counts = f"optimizers: {len(self.optimizers)}, steps: {len(self.steps)}, events: {len(self.events)}"
        return f"seen of {models or 'no model'}; {counts}; {self.ended}"

    @property
    def steps(self) -> list[Step]:
        """The steps of all optimizers, in order."""
        return self.of(Step)

    @property
    def forwards(self) -> list[Forward]:
        """The forward passes of all models, in order."""
        return self.of(Forward)

    def of(self, kind: type[E], where: Callable[[E], bool] | None = None) -> list[E]:
        """The events of one kind, in order, those for which ``where`` holds.

        Example:
            >>> Seen().of(Step)
            []
        """
        # Rules ask for the same kinds for each of many modules, and a model of many parameters makes many events.
        key = (id(self.events), len(self.events))
        if self._kinds[0] != key:
            by_kind: dict[type[Event], list[Any]] = {}
            for event in self.events:
                by_kind.setdefault(type(event), []).append(event)
            self._kinds = key, by_kind
        found: list[E] = self._kinds[1].get(kind, [])
        return list(found) if where is None else [event for event in found if where(event)]

    def model(self, name: str) -> ModelSeen | None:
        """The model of this name."""
        return next((model for model in self.models if model.name == name), None)

    def optimizer(self, name: str) -> OptimizerSeen | None:
        """The optimizer of this name."""
        return next((optimizer for optimizer in self.optimizers if optimizer.name == name), None)

    def tensor(self, key: tuple[str, str]) -> TensorSeen | None:
        """The tensor of a model, by the model's name and its path."""
        model = self.model(key[0])
        return model.tensors.get(key[1]) if model else None

    @property
    def trained(self) -> list[ModelSeen]:
        """The models that train."""
        return [model for model in self.models if model.trained]


def named(model: ModelSeen, path: str, seen: Seen) -> str:
    """A path as it is printed: with the name of its model in front where there are several."""
    alone = len(seen.models) == 1
    if not path:
        return model.name
    return path if alone else f"{model.name}.{path}"


def total(tensors: Sequence[TensorSeen]) -> int:
    """How many elements they have."""
    return sum(tensor.numel for tensor in tensors)


def settings_of(group: Mapping[str, Any]) -> dict[str, float]:
    """The hyperparameters of an optimizer's group that are numbers or truth values.

    Example:
        >>> settings_of({"params": [], "lr": 0.1, "nesterov": False})
        {'lr': 0.1, 'nesterov': 0.0}
    """
    found: dict[str, float] = {}
    for name, value in group.items():
        if isinstance(value, (bool, int, float)):
            found[name] = float(value)
        elif hasattr(value, "item") and getattr(value, "numel", lambda: 0)() == 1:
            found[name] = float(value)  # a rate that is a tensor
    return found
