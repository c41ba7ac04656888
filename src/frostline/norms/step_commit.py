"""Running statistics that move once in each step of the optimizer, by all the batches that went into the step.

PyTorch updates them in each forward pass: k times per step under gradient accumulation, twice per batch under
activation checkpointing, and also by batches whose step is skipped because their gradients were infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from frostline.attach.instance_method import InstanceMethod, install, uninstall
from frostline.attach.ledger import holds_mode
from frostline.errors import CannotConvert, NormsError, NoStatistics, name_some
from frostline.norms.changeable import batch_norms, check_changeable, reasons, why_refused
from frostline.norms.moments import Moments
from frostline.norms.policy import OncePerStep
from frostline.norms.staging import Stage, StagingForward, moments_of
from frostline.state import names
from frostline.state.selection import Selector
from frostline.tables import html_text


@dataclass(frozen=True)
class CommitPlan:
    """What :func:`step_commit` would do; prints itself.

    Attributes:
        root: the model, without wrappers.
        optimizer: the torch optimizer whose steps would commit.
        layers: path to layer, for every layer whose statistics would be staged.
        momenta: path to the weight of the new value in a commit.
        skipped: path to the reason, for every normalization layer that would be left as it is.
    """

    root: nn.Module
    optimizer: Optimizer
    layers: dict[str, _BatchNorm]
    momenta: dict[str, float]
    skipped: dict[str, str]

    def __str__(self) -> str:
        return f"statistics of {len(self.layers)} layers would move {_described(self.root, self.momenta, self.skipped)}"

    def _repr_html_(self) -> str:
        return html_text(self)

    def apply(self) -> StepCommit:
        """Carry it out: on all layers or, on an error, on none.

        Raises:
            NormsError: the model is no longer what it was when this was planned.
        """
        modules = dict(self.root.named_modules())
        changed = [p for p, layer in self.layers.items() if modules.get(p) is not layer or why_refused(layer)]
        if changed:
            raise NormsError(
                f"the model is not what it was when this was planned: {name_some(changed)}\n  fix: plan again"
            )
        commit = StepCommit(self)
        try:
            commit._begin()
        except BaseException:
            commit.remove()
            raise
        return commit


class StepCommit:
    """The layers whose statistics are staged; as a context manager it ends with the block.

    Attributes:
        root: the model, without wrappers.
        optimizer: the torch optimizer whose steps commit.
        layers: path to layer.
        skipped: path to the reason, for every normalization layer that is left as it is.
    """

    def __init__(self, plan: CommitPlan) -> None:
        self.root = plan.root
        self.optimizer = plan.optimizer
        self.layers = plan.layers
        self.skipped = plan.skipped
        self._momenta = plan.momenta
        self._stage = Stage()
        self._forwards: dict[str, StagingForward] = {}
        self._handles: list[Any] = []

    @property
    def staged(self) -> dict[str, Moments]:
        """What the next commit would move the statistics by, for the layers that have anything staged."""
        found = {path: moments_of(forward.staged()) for path, forward in self._forwards.items()}
        return {path: moments for path, moments in found.items() if moments.count}

    @property
    def dropped(self) -> dict[str, int]:
        """How many forward passes of each layer were not staged because their statistics were not finite, if any."""
        found = {path: int(forward.dropped) for path, forward in self._forwards.items()}
        return {path: count for path, count in found.items() if count}

    def remove(self) -> None:
        """Give layers and optimizer back what they had; a second time does nothing.

        What is staged and not committed is lost. Statistics keep the values that they have learnt.
        """
        for path, layer in self.layers.items():
            if layer.__dict__.get("forward") is self._forwards.get(path):
                uninstall(layer, "forward", StagingForward, None)
        for handle in self._handles:
            handle.remove()
        for owner in (self.root, self.optimizer):
            _unwatch(owner, self)
        self._forwards, self._handles = {}, []

    def __enter__(self) -> StepCommit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __str__(self) -> str:
        return f"statistics of {len(self._forwards)} layers move {_described(self.root, self._momenta, self.skipped)}"

    def _repr_html_(self) -> str:
        return html_text(self)

    def _begin(self) -> None:
        for path, layer in self.layers.items():
            forward = self._forwards[path] = StagingForward(layer, self._momenta[path])
            forward.begin(self._stage)
            install(layer, "forward", forward)
        self._handles.append(self.optimizer.register_step_post_hook(self._after_step))
        trained = (p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
        self._handles += [p.register_post_accumulate_grad_hook(self._on_gradient) for p in trained]
        for owner in (self.root, self.optimizer):
            _watch(owner, self)

    def _on_gradient(self, _parameter: Tensor) -> None:
        """What was staged before a backward pass goes into its gradients, and goes when they are cleared.

        What is staged when they are cleared, without a backward pass in between, does not: many loops call
        ``zero_grad`` between forward and backward.
        """
        if self._stage.fresh:
            self._stage.fresh = False
            for forward in self._forwards.values():
                forward.seal()

    def _forget(self) -> None:
        for forward in self._forwards.values():
            forward.forget()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        # An optimizer that scales gradients itself (fused ones do) is called for a step that it skips, too.
        infinite: Tensor | None = getattr(optimizer, "found_inf", None)
        allowed = None if infinite is None else infinite == 0
        self._stage.fresh = False
        for forward in self._forwards.values():
            forward.commit(allowed)


class _ZeroGrad(InstanceMethod[Any]):
    """Stands in for the ``zero_grad`` of a model or an optimizer, for which there is no hook.

    Attributes:
        before: what lay in its place.
        commits: who forgets with it; none in a copy.
    """

    def __init__(self, owner: Any, before: Callable[..., None] | None = None) -> None:
        super().__init__(owner)
        self.before = before
        self.commits: list[StepCommit] = []

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        owner = self.module
        if self.before is None:
            type(owner).zero_grad(owner, *args, **kwargs)
        else:
            self.before(*args, **kwargs)
        for commit in self.commits:
            commit._forget()


def _watch(owner: Any, commit: StepCommit) -> None:
    found = owner.__dict__.get("zero_grad")
    if not isinstance(found, _ZeroGrad):
        found = owner.__dict__["zero_grad"] = _ZeroGrad(owner, found)
    found.commits.append(commit)


def _unwatch(owner: Any, commit: StepCommit) -> None:
    found = owner.__dict__.get("zero_grad")
    if isinstance(found, _ZeroGrad):
        found.commits = [other for other in found.commits if other is not commit]
        if not found.commits:
            uninstall(owner, "zero_grad", _ZeroGrad, found.before)


def step_commit(
    model: nn.Module, optimizer: Optimizer, *selectors: Selector, momentum: float | None = None
) -> StepCommit:
    """Move running statistics once in each step of the optimizer, by all batches that went into it.

    In train mode the layers normalize with their batch as ever, but only stage its count, mean and sum of squared
    deviations. The step merges what is staged and moves the statistics once: the mean, and the unbiased variance, of
    all values, with the weight ``momentum``; ``num_batches_tracked`` grows by one. Eval mode is untouched. Right under:

    - gradient accumulation: k micro-batches count as one batch k times as large, whatever their sizes. They are still
      *normalized* one by one;
    - activation checkpointing: the second run of a forward pass stages nothing;
    - several forward passes per step, as of two views: they are merged;
    - steps that ``GradScaler`` skips: what was staged goes with the gradients, at ``zero_grad`` of the optimizer or of
      the model. Gradients cleared by hand (``p.grad = None``) do not tell; what was staged for them is committed with
      the next step;
    - batches that are not finite: a layer does not stage what is not, and counts it in :attr:`StepCommit.dropped`;
    - closures (LBFGS): of several evaluations within a step the last one counts, if the closure calls ``zero_grad``;
    - forward passes in train mode without gradients: staged like any other, as PyTorch updates by them, too.

    Layers keep their object, class, flags, hooks and ``state_dict`` keys. Nothing waits for the device, and under
    ``torch.compile`` nothing is compiled anew from step to step; what is staged in a compiled region that an eager
    checkpoint runs twice counts twice, which moves the mean by nothing and the variance by less than one part in the
    number of values. What is staged is in no ``state_dict``; copies of the model do what PyTorch does.
    With several processes each commits the statistics of its own batches.

    Args:
        model: any module; wrappers are looked through.
        optimizer: the optimizer whose steps commit; wrappers such as accelerate's are looked through.
        *selectors: only this part; the whole model by default. Held layers are left as they are, and a layer that is
            held later does not move.
        momentum: the weight of the new value in a commit; by default each layer's own.

    Returns:
        The :class:`StepCommit`, which is a context manager too.

    Raises:
        NormsError: no optimizer, or a layer has a policy, domains or another forward already, or no momentum.
        CannotConvert: the forward of a layer's class does not follow PyTorch's switches.
        NoStatistics: no batch norm that keeps running statistics is selected, or all are held.
        NothingSelected: a selector matches nothing.

    Example:
        >>> import torch
        >>> layer = nn.BatchNorm1d(1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> with step_commit(layer, optimizer, momentum=0.5) as commit:
        ...     for part in (torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])):
        ...         layer(part).sum().backward()
        ...     waiting = layer.running_mean.item(), commit.staged[""].mean.item()
        ...     optimizer.step()
        >>> waiting, layer.running_mean.item(), layer.num_batches_tracked.item()
        ((0.0, 3.0), 1.5, 1)
    """
    return plan_step_commit(model, optimizer, *selectors, momentum=momentum).apply()


def plan_step_commit(
    model: nn.Module, optimizer: Optimizer, *selectors: Selector, momentum: float | None = None
) -> CommitPlan:
    """Say what :func:`step_commit` would do. The model is only read; arguments and errors are the same.

    Example:
        >>> from torch.optim import SGD
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2))
        >>> print(plan_step_commit(model, SGD(model.parameters(), lr=0.1)))
        statistics of 1 layers would move once per step of the optimizer, in Sequential: 0
          left as it is: 1: LayerNorm keeps no running statistics
    """
    found, skipped = batch_norms(model, "step_commit", *selectors)
    skipped |= {path: "held" for path, layer in found.items() if holds_mode(layer)}
    layers = {path: layer for path, layer in found.items() if path not in skipped}
    if not layers:
        raise NoStatistics(f"step_commit: all {len(found)} layers are held\n{reasons(skipped)}\n  fix: thaw them first")
    check_changeable(layers, "step_commit")
    momenta: dict[str, float] = {}
    for path, layer in layers.items():
        weight = layer.momentum if momentum is None else momentum
        if weight is None:
            raise CannotConvert(
                f"step_commit: layer {path!r} has momentum=None (a cumulative average), so no weight for a commit\n"
                "  fix: step_commit(..., momentum=0.1), or another"
            )
        momenta[path] = OncePerStep(weight).momentum
    return CommitPlan(names.unwrap(model), _inner(optimizer), layers, momenta, skipped)


def _inner(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer inside: accelerate's is an Optimizer by type, but keeps no hooks."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise NormsError(
            f"step_commit: expected a torch.optim.Optimizer, got {type(optimizer).__name__}\n"
            "  fix: pass the torch optimizer itself"
        )
    return optimizer


def _described(root: nn.Module, layers: dict[str, float], skipped: dict[str, str]) -> str:
    folded = names.name_folded(list(layers), root="(the model)", rest="layers")
    lines = [f"once per step of the optimizer, in {type(root).__name__}: {folded}"]
    return "\n".join(lines + [f"  left as it is: {line.strip()}" for line in reasons(skipped).splitlines()])
