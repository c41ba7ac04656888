"""One optimizer under watch: what it owns, its rates step by step, and the modes it has of its own."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from frostline.audit.marks import marks
from frostline.audit.model_watch import ModelWatch
from frostline.audit.places import NOWHERE, Place

# So many of the first rates are kept; a schedule shows itself in them, and a long run must not fill the memory.
_KEPT_RATES = 2000
# What torch's optimizers keep for every element of a parameter.
_ELEMENTWISE = frozenset(
    [
        "momentum_buffer",
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "square_avg",
        "grad_avg",
        "sum",
        "acc_delta",
        "exp_inf",
        "prev",
        "ax",
    ]
)
# What optimizers keep in their groups beside their own hyperparameters.
_KNOWN_SETTINGS = frozenset(
    {"params", "initial_lr", "param_names", "max_lr", "min_lr", "swa_lr", "name", "max_momentum"}
)


@dataclass
class OptimizerWatch:
    """What the recorder keeps of one optimizer."""

    optimizer: Optimizer
    name: str
    made: Place = NOWHERE
    made_at: int | None = None
    steps: int = 0
    forwards: int = 0
    backwards: int = 0
    rows: list[int] = field(default_factory=list[int])
    rates: list[list[float]] = field(default_factory=list[list[float]])
    schedulers: list[str] = field(default_factory=list[str])
    in_train_mode: list[bool] = field(default_factory=list[bool])
    in_train_mode_at_eval: list[bool] = field(default_factory=list[bool])
    zero_grads: int = 0
    cleared: bool = True
    cleared_after_backward: bool = False
    digests: dict[Tensor, str] = field(default_factory=dict[Tensor, str])
    _used: list[weakref.ref[Tensor]] = field(default_factory=list["weakref.ref[Tensor]"])

    @property
    def parameters(self) -> Iterator[Tensor]:
        """All tensors that it owns."""
        return (tensor for group in self.optimizer.param_groups for tensor in group["params"])

    def owns_of(self, watch: ModelWatch) -> bool:
        """Whether it has a parameter of a model."""
        return any(watch.has(p) for p in self.parameters)

    def marks(self) -> dict[Tensor, str]:
        """The digests of its parameters."""
        tensors = list(self.parameters)
        found = marks({str(i): tensor for i, tensor in enumerate(tensors)})
        return {tensor: found[str(i)] for i, tensor in enumerate(tensors)}

    def misfitting(self) -> Iterator[Tensor]:
        """Parameters whose state is of another shape than they are; of state that is kept element by element."""
        for parameter in self.parameters:
            state = self.optimizer.state.get(parameter, {})
            kept = [value for name, value in state.items() if name in _ELEMENTWISE and isinstance(value, Tensor)]
            if any(value.shape != parameter.shape for value in kept):
                yield parameter

    def stepped(self) -> None:
        """A step is over: the windows of what is counted between two steps begin anew."""
        self.steps += 1
        self.forwards = self.backwards = self.zero_grads = 0
        self.rows, self.digests = [], {}
        self.cleared = False
        self._used = [weakref.ref(t) for t in self.parameters if t.grad is not None]

    def look_for_cleared(self, sample: int) -> int:
        """Before a backward pass, whether somebody has cleared by hand what the last step has used.

        Returns:
            How many gradients that the last step has used are still there and not zero.
        """
        if self.cleared or not self._used:
            return 0
        asked = [t for ref in self._used[:sample] if (t := ref()) is not None]
        if not any(t.grad is not None and bool(t.grad.any()) for t in asked):
            self.cleared = True
            return 0
        return len(self._used)

    @property
    def fused(self) -> bool:
        """Whether a fused kernel writes its parameters, past their version counters."""
        return any(group.get("fused") for group in self.optimizer.param_groups)

    @property
    def has_modes(self) -> bool:
        """Whether it has ``train()`` and ``eval()`` of its own; a wrapper (accelerate's) passes on those of another."""
        own: object = self.optimizer
        while isinstance(inner := getattr(own, "optimizer", None), Optimizer):
            own = inner
        return callable(getattr(own, "eval", None)) and callable(getattr(own, "train", None))

    @property
    def train_mode(self) -> bool:
        """The mode it is in, where it has one: schedule-free optimizers keep it in their groups."""
        groups = self.optimizer.param_groups
        return bool(groups and groups[0].get("train_mode", getattr(self.optimizer, "train_mode", True)))

    def note_rates(self) -> tuple[float, ...]:
        """Take down the rate of each group as it is now."""
        rates = tuple(float(group.get("lr", 0.0)) for group in self.optimizer.param_groups)
        for i, rate in enumerate(rates):
            if i == len(self.rates):
                self.rates.append([])
            if len(self.rates[i]) < _KEPT_RATES:
                self.rates[i].append(rate)
        return rates

    def ignored(self, group: int) -> tuple[str, ...]:
        """Settings of a group that the optimizer's class has no default for: nobody reads them."""
        return tuple(
            name
            for name in self.optimizer.param_groups[group]
            if name not in self.optimizer.defaults and name not in _KNOWN_SETTINGS
        )
