"""Carries out statistics policies: a layer normalizes with, and updates, what a value says, not what its switches say.

PyTorch has three switches for it (mode, ``track_running_stats``, whether the buffers exist), with which some pairs
cannot be expressed, *running and updated* among them, and others only by a detour (*batch and not updated*).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType

from torch import nn

from frostline.attach.instance_method import install, uninstall
from frostline.errors import CannotConvert, NormsError, name_some
from frostline.norms.changeable import batch_norms, check_changeable, reasons, why_refused
from frostline.norms.own_forward import COUNT
from frostline.norms.policy import EMA, Blend, Cumulative, Domain, OncePerStep, StatsPolicy
from frostline.norms.policy_forward import PolicyForward
from frostline.state import names
from frostline.state.selection import Selector
from frostline.tables import html_text


@dataclass(frozen=True)
class PolicyPlan:
    """What :func:`set_policy` would do; prints itself.

    Attributes:
        root: the model, without wrappers.
        train: the policy in train mode; ``None`` is what the layers do by themselves.
        eval: likewise in eval mode.
        layers: path to layer, for every layer that would follow it.
        skipped: path to the reason, for every normalization layer that has no running statistics of a batch.
    """

    root: nn.Module
    train: StatsPolicy | None
    eval: StatsPolicy | None
    layers: dict[str, nn.Module]
    skipped: dict[str, str]

    def __str__(self) -> str:
        return "\n".join(_lines(f"{len(self.layers)} layers of {type(self.root).__name__} would follow a policy", self))

    def _repr_html_(self) -> str:
        return html_text(self)

    def apply(self) -> PolicyHandle:
        """Set the policy: on all layers or, on an error, on none.

        Raises:
            NormsError: the model is no longer what it was when this was planned.
        """
        modules = dict(self.root.named_modules())
        changed = [p for p, layer in self.layers.items() if modules.get(p) is not layer or why_refused(layer)]
        if changed:
            raise NormsError(
                f"the model is not what it was when this was planned: {name_some(changed)}\n  fix: plan again"
            )
        try:
            for layer in self.layers.values():
                install(layer, "forward", PolicyForward(layer, self.train, self.eval))
        except BaseException:
            for layer in self.layers.values():
                uninstall(layer, "forward", PolicyForward, None)
            raise
        return PolicyHandle(self.root, self.train, self.eval, dict(self.layers), dict(self.skipped))


@dataclass(frozen=True)
class PolicyHandle:
    """The layers that follow a policy; as a context manager it removes the policy at the end of the block.

    Attributes:
        root: the model, without wrappers.
        train: the policy in train mode; ``None`` is what the layers do by themselves.
        eval: likewise in eval mode.
        layers: path to layer.
        skipped: path to the reason, for the normalization layers that have no running statistics of a batch.
    """

    root: nn.Module
    train: StatsPolicy | None
    eval: StatsPolicy | None
    layers: dict[str, nn.Module]
    skipped: dict[str, str]

    def remove(self) -> None:
        """Give the layers back the forward of their class; a second time does nothing.

        Statistics keep the values that they have learnt.
        """
        for layer in self.layers.values():
            found = policy_forward_of(layer)
            if found is not None and (found.train, found.eval) == (self.train, self.eval):
                uninstall(layer, "forward", PolicyForward, None)

    def __enter__(self) -> PolicyHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __str__(self) -> str:
        return "\n".join(_lines(f"{len(self.layers)} layers of {type(self.root).__name__} follow a policy", self))

    def _repr_html_(self) -> str:
        return html_text(self)


def set_policy(
    model: nn.Module,
    *selectors: Selector,
    train: StatsPolicy | None = None,
    eval: StatsPolicy | None = None,  # noqa: A002 - the name of the mode
) -> PolicyHandle:
    """Make batch norms normalize with, and update, what a policy says: one in train mode, one in eval mode.

    An update comes before the use: with ``("running", EMA(m))`` a layer first takes the batch into its running
    statistics and then normalizes with them. Running statistics are constants to the backward pass, as in eval mode;
    the share of the batch in a :class:`~frostline.norms.policy.Blend` is differentiated through, and its variance is
    the biased one, so that ``Blend(1.0)`` is the batch and ``Blend(0.0)`` the running statistics. Without an update
    neither statistics nor ``num_batches_tracked`` are touched.

    Layers keep their object, class, mode, flags, hooks, parameters, buffers and ``state_dict`` keys; the policy goes
    along into copies and pickles of the model, where :func:`policies_on` finds it. Nothing waits for the device, and
    under ``torch.compile`` nothing is compiled anew from step to step. The second run of a forward pass that activation
    checkpointing makes updates nothing; *running and updated* is exact there for one forward pass per backward pass.
    A hold wins: a layer that is held after this does what it does in eval mode by itself, until it is thawed.

    Not for threads that run one model at the same time, nor for ``DataParallel`` on several devices: during a call a
    layer's switches stand as the policy needs them, and replicas would act on the original.

    Args:
        model: any module; ``torch.compile`` and distributed wrappers are looked through.
        *selectors: only this part; the whole model by default.
        train: what the layers do in train mode; ``None`` is what they do by themselves. Use ``"batch"``, ``"running"``
            or a :class:`~frostline.norms.policy.Blend`; update by :class:`~frostline.norms.policy.EMA`,
            :class:`~frostline.norms.policy.Cumulative` or ``None``.
        eval: likewise in eval mode.

    Returns:
        The :class:`PolicyHandle`, which is a context manager too.

    Raises:
        NormsError: there is no such policy, or a layer is held or has a policy, domains or another forward already.
        CannotConvert: the forward of a layer's class does not follow PyTorch's switches.
        NoStatistics: no layer selected keeps running statistics of a batch.
        NothingSelected: a selector matches nothing.

    Example:
        >>> import torch
        >>> layer = nn.BatchNorm1d(1)
        >>> with set_policy(layer, train=StatsPolicy("running", EMA(0.5))):
        ...     layer(torch.tensor([[2.0], [4.0]])).flatten().tolist()
        [0.408..., 2.041...]
        >>> layer.running_mean.item(), layer.running_var.item()
        (1.5, 1.5)

    Source: the order of update and use is that of ``robusta/batchnorm/bn.py:EMABatchNorm`` (bethgelab/robustness); the
        blend is that of Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift
        adaptation", section 3.
    """
    return plan_set_policy(model, *selectors, train=train, eval=eval).apply()


def plan_set_policy(
    model: nn.Module,
    *selectors: Selector,
    train: StatsPolicy | None = None,
    eval: StatsPolicy | None = None,  # noqa: A002
) -> PolicyPlan:
    """Say what :func:`set_policy` would do. The model is only read; arguments and errors are the same.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))
        >>> print(plan_set_policy(model, eval=StatsPolicy("batch")))
        1 layers of Sequential would follow a policy: 1
          train mode: as by itself
          eval mode: uses batch, updates nothing
          left as it is: 2: LayerNorm keeps no running statistics
    """
    if train is None and eval is None:
        raise NormsError("set_policy: there is no policy to set\n  fix: give train=StatsPolicy(...), eval=... or both")
    for policy in (train, eval):
        if policy is not None:
            _check_policy(policy)
    layers, skipped = batch_norms(model, "set_policy", *selectors)
    check_changeable(layers, "set_policy")
    if any(p is not None and isinstance(p.update, Cumulative) for p in (train, eval)):
        uncounted = [path for path, layer in layers.items() if layer._buffers.get(COUNT) is None]
        if uncounted:
            raise CannotConvert(
                f"set_policy: layers without num_batches_tracked cannot average over batches: {name_some(uncounted)}\n"
                "  fix: update=EMA(...) for these"
            )
    return PolicyPlan(names.unwrap(model), train, eval, dict(layers), skipped)


def policies_on(model: nn.Module) -> list[PolicyHandle]:
    """The policies that are on a model, found in the model itself: on a copy, or after loading.

    Returns:
        One handle for each pair of policies, with all layers that follow it.

    Example:
        >>> from copy import deepcopy
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> _ = set_policy(model, eval=StatsPolicy("batch"))
        >>> copy = deepcopy(model)
        >>> policies_on(copy)[0].remove()
        >>> len(policies_on(copy)), len(policies_on(model))
        (0, 1)
    """
    root = names.unwrap(model)
    found: dict[tuple[StatsPolicy | None, StatsPolicy | None], dict[str, nn.Module]] = {}
    for path, module in root.named_modules():
        forward = policy_forward_of(module)
        if forward is not None:
            found.setdefault((forward.train, forward.eval), {})[path] = module
    return [PolicyHandle(root, *policies, layers, {}) for policies, layers in found.items()]


def policy_forward_of(layer: nn.Module) -> PolicyForward | None:
    """The replaced forward of a layer that follows a policy; ``None`` if it follows none.

    Example:
        >>> policy_forward_of(nn.BatchNorm1d(2)) is None
        True
    """
    found = layer.__dict__.get("forward")
    # What came along with a shallow copy acts on another module.
    return found if isinstance(found, PolicyForward) and found.guards(layer) else None


def _check_policy(policy: StatsPolicy) -> None:
    if isinstance(policy.use, Domain) or isinstance(policy.update, OncePerStep):
        verb = "split_domains" if isinstance(policy.use, Domain) else "step_commit"
        raise NormsError(f"set_policy: {policy} is not carried out by a policy\n  fix: frostline.norms.{verb}")
    known = policy.use in ("batch", "running") or isinstance(policy.use, Blend)
    if not known or not isinstance(policy.update, (EMA, Cumulative, NoneType)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise NormsError(
            f"set_policy: a batch norm cannot follow {policy!r}\n"
            '  fix: use "batch", "running" or Blend(...), and update EMA(...), Cumulative() or None'
        )


def _lines(title: str, of: PolicyPlan | PolicyHandle) -> list[str]:
    folded = names.name_folded(list(of.layers), root="(the model)", rest="layers")
    lines = [f"{title}: {folded}"]
    lines += [f"  {mode} mode: {policy or 'as by itself'}" for mode, policy in (("train", of.train), ("eval", of.eval))]
    return lines + [f"  left as it is: {line.strip()}" for line in reasons(of.skipped).splitlines()]
