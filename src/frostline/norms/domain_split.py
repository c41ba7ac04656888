"""Splitting: which layers get statistics by domain, and which are left as they are and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from frostline.attach.ledger import holds_statistics
from frostline.errors import DomainError, NoStatistics, name_some
from frostline.norms.domain_forward import (
    add_domains,
    buffer_keys,
    forward_of,
    of_domain,
    parameter_keys,
    remove_domains,
)
from frostline.norms.domains import MIXTURE, Domains
from frostline.norms.layers import statistics_of
from frostline.norms.observe import tracked_layers
from frostline.state import names as state_names
from frostline.state.selection import Selector, select
from frostline.tables import html_text


@dataclass(frozen=True)
class SplitPlan:
    """What a split would do; prints itself.

    Attributes:
        root: the model, without wrappers.
        names: the domains.
        layers: path to layer, for every layer that would be split.
        skipped: path to the reason, for every normalization layer that would be left as it is.
        share_affine: whether the domains share weight and bias.
        buffers: paths of the buffers that would be added.
        parameters: paths of the parameters that would be added, of which an optimizer has to be told.
    """

    root: nn.Module
    names: tuple[str, ...]
    layers: dict[str, nn.Module]
    skipped: dict[str, str]
    share_affine: bool
    buffers: tuple[str, ...]
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        affine = "weight and bias shared" if self.share_affine else "weight and bias of their own"
        lines = [
            f"split {len(self.layers)} layers of {type(self.root).__name__} into {', '.join(self.names)}; {affine}"
        ]
        lines += [f"  {folded}" for folded in state_names.fold(list(self.layers))]
        lines += [f"  + buffer {folded}" for folded in state_names.fold(self.buffers)]
        lines += [
            f"  + parameter {folded}, to be added to the optimizer" for folded in state_names.fold(self.parameters)
        ]
        for reason in dict.fromkeys(self.skipped.values()):
            paths = [path for path, why in self.skipped.items() if why == reason]
            lines += [f"  left as it is: {folded}: {reason}" for folded in state_names.fold(paths)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_text(self)

    def apply(self) -> Domains:
        """Split the layers: either all of them or, on an error, none.

        Raises:
            DomainError: the model is no longer what it was when this was planned.
        """
        modules = dict(self.root.named_modules())
        changed = [
            path
            for path, layer in self.layers.items()
            if modules.get(path) is not layer or _why_left(layer, self.names, self.share_affine)
        ]
        if changed:
            raise DomainError(
                f"the model is not what it was when this was planned: {name_some(changed)}\n  fix: plan again"
            )
        try:
            for path, layer in self.layers.items():
                add_domains(layer, path, self.names, share_affine=self.share_affine)
        except BaseException:
            for layer in self.layers.values():
                remove_domains(layer, self.names)
            raise
        return Domains(self.root, self.names, tuple(self.layers))


def plan_split_domains(
    model: nn.Module, names: Sequence[str], *selectors: Selector, share_affine: bool = True
) -> SplitPlan:
    """Say what :func:`split_domains` would do. The model is only read; arguments and errors are the same.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))
        >>> print(plan_split_domains(model, ["ground", "aerial"]))
        split 1 layers of Sequential into ground, aerial; weight and bias shared
          1
          + buffer 1.running_mean_ground
          + buffer 1.running_mean_aerial
          + buffer 1.running_var_ground
          + buffer 1.running_var_aerial
          + buffer 1.num_batches_tracked_ground
          + buffer 1.num_batches_tracked_aerial
          left as it is: 2: LayerNorm keeps no running statistics
    """
    known = _checked(names)
    root = state_names.unwrap(model)
    selected = select(root, *selectors).modules if selectors else dict(root.named_modules())
    tracked = tracked_layers(model, *selectors)
    skipped: dict[str, str] = {}
    for path, module in root.named_modules():
        if path in selected and statistics_of(module) is not None:
            untracked = f"{type(module).__name__} keeps no running statistics"
            why = _why_left(module, known, share_affine) if path in tracked else untracked
            if why:
                skipped[path] = why
    layers = {path: layer for path, layer in tracked.items() if path not in skipped}
    if not layers:
        reasons = [f"  {path or '(the model)'}: {why}" for path, why in list(skipped.items())[:8]]
        raise NoStatistics(
            f"split_domains: no layer of {type(root).__name__} can be split\n"
            + "\n".join(reasons or ["  there is no normalization layer in what was selected"])
        )
    buffers = tuple(
        state_names.join(path, of_domain(key, name))
        for path, layer in layers.items()
        for key in buffer_keys(layer)
        for name in known
    )
    parameters = tuple(
        state_names.join(path, of_domain(key, name))
        for path, layer in layers.items()
        for key in parameter_keys(layer)
        for name in known
        if not share_affine
    )
    return SplitPlan(root, known, layers, skipped, share_affine, buffers, parameters)


def split_domains(model: nn.Module, names: Sequence[str], *selectors: Selector, share_affine: bool = True) -> Domains:
    """Give every layer with running statistics a set of its own for each domain, which starts as a copy.

    From then on a forward pass needs a current domain, set by :func:`domain`: it normalizes with that domain's
    statistics in eval mode and updates only them in train mode, equal to the bit to a plain layer that has these
    statistics. Layers keep their object, class, mode, momentum, hooks and Parameters; the statistics that were there
    stay in their buffers, unused, for :meth:`Domains.undo`. New buffers are named for their domain,
    ``running_mean_ground``, and are part of the ``state_dict``: it loads into any model that was split alike. A
    ``state_dict`` from before lacks them: ``load_state_dict`` calls them missing, and with ``strict=False`` leaves the
    domains at what they are. Split after loading, then. Held layers, layers without running statistics and those whose
    forward something else has replaced are left as they are; :func:`plan_split_domains` names them.

    Args:
        model: any module; ``torch.compile`` and data-parallel wrappers are looked through.
        names: the domains, two or more.
        *selectors: only this part; the whole model by default.
        share_affine: whether the domains share weight and bias. If not, each gets Parameters of its own, that start
            as copies and that an optimizer has to be told of (``optimizer.add_param_group({"params":
            domains.parameters()})``); the original ones are then used by none and get no gradient. Sharing hardly
            matters (Wu and Johnson, table 5).

    Returns:
        The :class:`Domains`. It need not be kept: :func:`domains_of` finds it again, in copies too.

    Raises:
        DomainError: the names do not fit.
        NoStatistics: no layer can be split, or one is lazy and has no statistics yet.
        NothingSelected: a selector matches nothing.

    Example:
        >>> import torch
        >>> from frostline.norms.domains import domain
        >>> model = nn.Sequential(nn.BatchNorm1d(2, momentum=1.0))
        >>> domains = split_domains(model, ["ground", "aerial"])
        >>> with domain(model, "aerial"):
        ...     _ = model(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> model[0].running_mean_aerial.tolist(), model[0].running_mean_ground.tolist()
        ([2.0, 3.0], [0.0, 0.0])

    Source:
        Chang et al. 2019, "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", section 3;
        Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 5 and table 5.
    """
    return plan_split_domains(model, names, *selectors, share_affine=share_affine).apply()


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or len(names) < 2 or len(set(names)) < len(names):
        raise DomainError(f"split_domains: expected two or more different names of domains, found {names!r}")
    for name in names:
        if not isinstance(name, str) or not name or "." in name or name == MIXTURE:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DomainError(
                f"split_domains: {name!r} cannot name a domain: a name is a string, ends the names of buffers "
                f"(so without dots), and is not {MIXTURE!r}, which is what merge calls all of them"
            )
    return tuple(names)


def _why_left(layer: nn.Module, names: tuple[str, ...], share_affine: bool) -> str | None:
    """Why a layer with running statistics cannot be split, if it cannot."""
    if holds_statistics(layer):
        return "held"
    if split := forward_of(layer):
        return f"already split into {', '.join(split.names)}"
    if replaced := layer.__dict__.get("forward"):
        return f"its forward has been replaced by a {type(replaced).__name__}"
    if isinstance(layer, _InstanceNorm) and not layer.track_running_stats:
        return f"{type(layer).__name__} with track_running_stats=False never uses its statistics"
    if not share_affine and parametrize.is_parametrized(layer):
        return "its weight is parametrized, and cannot be one for each domain"
    keys = [*buffer_keys(layer), *parameter_keys(layer)]
    taken = [new for key in keys for name in names if hasattr(layer, new := of_domain(key, name))]
    return f"it has a {taken[0]!r} already" if taken else None
