"""What one split layer does in its forward pass: its class' own forward, on the statistics of the current domain.

The layer knows nothing of the model around it: :mod:`frostline.norms.domain_split` chooses the layers of a model, and
:mod:`frostline.norms.domains` sets their current domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from frostline.attach.instance_method import InstanceMethod, install, uninstall
from frostline.errors import DomainError, name_some
from frostline.norms.layers import Layout, layout_of, statistics_of
from frostline.norms.policy import EMA, Cumulative, Domain, StatsPolicy, Update
from frostline.norms.processes import world_size
from frostline.state import names as state_names

COUNT = "num_batches_tracked"


class Tags:
    """The domain of each sample of a batch.

    Attributes:
        size: how many samples there are.
        parts: each domain that has samples, and their positions in the batch.
        back: where each sample of the batch lies once the parts are put behind one another.

    Example:
        >>> tags = Tags(["b", "a", "b"], ("a", "b"))
        >>> [(name, positions.tolist()) for name, positions in tags.parts], tags.back.tolist()
        ([('a', [1]), ('b', [0, 2])], [1, 0, 2])
    """

    def __init__(
        self, tags: Sequence[str] | Tensor, known: tuple[str, ...], device: torch.device | str | None = None
    ) -> None:
        index = _index(tags, known).to(device)
        self.size = index.shape[0]
        parts = [(name, (index == i).nonzero().flatten()) for i, name in enumerate(known)]
        self.parts = tuple((name, positions) for name, positions in parts if positions.shape[0])
        self.back = torch.argsort(torch.cat([positions for _, positions in self.parts]))


class DomainForward(InstanceMethod[nn.Module]):
    """Stands in for the forward of a layer that keeps statistics of several domains.

    For the time of a call the current domain's tensors lie where the class looks for them, so that it normalizes with
    them and updates them as any layer with these statistics would. Copies of the layer start without a current domain:
    the ``with`` block that would end it is not theirs.

    Attributes:
        path: the layer's path in the model that was split.
        names: the domains.
        buffers: the names, in the class, of the buffers that each domain has its own of.
        parameters: likewise of parameters; empty if weight and bias are shared.
        own_layout: where the class keeps its statistics.
        now: the current domain, the tags of the current batch, or ``None``.
    """

    def __init__(
        self,
        module: nn.Module,
        path: str,
        names: tuple[str, ...],
        buffers: tuple[str, ...],
        parameters: tuple[str, ...],
        own_layout: Layout,
    ) -> None:
        super().__init__(module)
        self.path = path
        self.names = names
        self.buffers = buffers
        self.parameters = parameters
        self.own_layout = own_layout
        self.now: str | Tags | None = None

    def _settings(self) -> tuple[Any, ...]:
        return self.path, self.names, self.buffers, self.parameters, self.own_layout

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the class, in the current domain or each sample in its own."""
        now = self.now
        if now is None:
            raise DomainError(
                f"layer {self.path!r} ({type(self.module).__name__}) keeps statistics of "
                f"{name_some(self.names)}, and none of them is current\n"
                f"  fix: with frostline.norms.domain(model, {self.names[0]!r}): model(x)"
            )
        if isinstance(now, str):
            return self.in_domain(now, args, kwargs)
        # torch.compiler.disable declares no signature
        return _by_sample(self, now, args, kwargs)  # pyright: ignore[reportCallIssue]

    def policy(self) -> StatsPolicy:
        """What the layer does with statistics in its present mode."""
        return StatsPolicy(Domain(self.names), self._update())

    def layout(self) -> Layout:
        """Where the statistics lie that the layer would use now; the source's where no single domain is current."""
        own = self.own_layout
        if not isinstance(self.now, str):
            return own
        return replace(own, mean=of_domain(own.mean, self.now), var=of_domain(own.var, self.now))

    def in_domain(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward of the class, on the tensors of one domain."""
        module = self.module
        buffers, parameters = module._buffers, module._parameters
        source = {key: buffers[key] for key in self.buffers}
        source_parameters = {key: parameters[key] for key in self.parameters}
        own = {key: buffers[of_domain(key, name)] for key in self.buffers}
        own_parameters = {key: parameters[of_domain(key, name)] for key in self.parameters}
        try:
            buffers.update(own)
            parameters.update(own_parameters)
            return type(module).forward(module, *args, **kwargs)
        finally:
            for key in self.buffers:
                # Some classes do not write into their statistics, but put new tensors in their place.
                buffers[of_domain(key, name)] = buffers[key]
            buffers.update(source)
            parameters.update(source_parameters)

    def check(self, tags: Tags, x: Tensor) -> None:
        """Refuse a batch that could be normalized in part only.

        Raises:
            DomainError: its size is not that of the tags, or a domain has too few samples for train mode.
        """
        module = self.module
        layer = f"layer {self.path!r} ({type(module).__name__})"
        if x.shape[0] != tags.size:
            raise DomainError(
                f"{layer} was given {x.shape[0]} samples, and there are {tags.size} tags\n"
                "  fix: one tag for each sample that arrives at the layer, in the order of the batch"
            )
        use = statistics_of(module)
        if use is None or use.uses != "batch":
            return
        if isinstance(module, nn.SyncBatchNorm) and world_size() > 1:
            raise DomainError(
                f"{layer}: a tagged batch would leave the processes waiting for one another where a domain has no "
                "samples in one of them\n  fix: pass the domains one by one: with domain(model, name): ..."
            )
        values = x.numel() // (x.shape[0] * x.shape[self.own_layout.channel_dim] or 1)
        for name, positions in tags.parts:
            if positions.shape[0] * values == 1:
                raise DomainError(
                    f"{layer}: domain {name!r} has one value per channel in this batch, which has no variance\n"
                    "  fix: batches with at least two samples of a domain, or none"
                )

    def _update(self) -> Update:
        module = self.module
        use = statistics_of(module)
        if use is None or not use.updates:
            return None
        momentum = getattr(module, "momentum", None)
        if momentum is None:
            # An instance norm takes no momentum for a momentum of zero.
            return EMA(0.0) if use.uses == "instance" else Cumulative()
        return EMA(momentum)


def of_domain(key: str, name: str) -> str:
    """The name of a domain's own tensor.

    Example:
        >>> of_domain("running_mean", "aerial")
        'running_mean_aerial'
    """
    return f"{key}_{name}"


def forward_of(module: nn.Module) -> DomainForward | None:
    """The replaced forward of a layer that is split; ``None`` if it is not.

    Example:
        >>> forward_of(nn.BatchNorm1d(2)) is None
        True
    """
    found = module.__dict__.get("forward")
    # What came along with a shallow copy acts on another module.
    return found if isinstance(found, DomainForward) and found.guards(module) else None


def buffer_keys(layer: nn.Module) -> tuple[str, ...]:
    """The buffers that each domain gets its own of."""
    layout = layout_of(layer)
    return tuple(key for key in (layout.mean, layout.var, COUNT) if layer._buffers.get(key) is not None)


def parameter_keys(layer: nn.Module) -> tuple[str, ...]:
    """The parameters that each domain can get its own of."""
    return tuple(key for key in ("weight", "bias") if layer._parameters.get(key) is not None)


def add_domains(layer: nn.Module, path: str, names: tuple[str, ...], *, share_affine: bool) -> None:
    """Give a layer a copy of its statistics for each domain, and the forward that uses them."""
    buffers, parameters = buffer_keys(layer), () if share_affine else parameter_keys(layer)
    for key in buffers:
        source = layer._buffers[key]
        assert source is not None
        for name in names:
            persistent = key not in layer._non_persistent_buffers_set
            layer.register_buffer(of_domain(key, name), source.detach().clone(), persistent=persistent)
    for key in parameters:
        origin = layer._parameters[key]
        assert origin is not None
        for name in names:
            own = nn.Parameter(origin.detach().clone(), requires_grad=origin.requires_grad)
            layer.register_parameter(of_domain(key, name), own)
    install(layer, "forward", DomainForward(layer, path, names, buffers, parameters, layout_of(layer)))


def remove_domains(layer: nn.Module, names: tuple[str, ...]) -> None:
    """Undo :func:`add_domains`, however far it got."""
    uninstall(layer, "forward", DomainForward, None)
    layout = layout_of(layer)
    for name in names:
        for key in (layout.mean, layout.var, COUNT):
            layer._buffers.pop(of_domain(key, name), None)
            layer._non_persistent_buffers_set.discard(of_domain(key, name))
        for key in ("weight", "bias"):
            layer._parameters.pop(of_domain(key, name), None)


def domain_buffers(layer: nn.Module, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors themselves in which a split layer keeps one domain's statistics.

    Args:
        layer: a layer that was split.
        name: the domain.

    Returns:
        Mean, variance and the count of batches, ``None`` where the layer keeps no count.

    Raises:
        DomainError: the layer is not split, or has no such domain.

    Example:
        >>> from frostline.norms.domain_split import split_domains
        >>> layer = nn.BatchNorm1d(2)
        >>> _ = split_domains(layer, ["ground", "aerial"])
        >>> mean, var, count = domain_buffers(layer, "aerial")
        >>> mean is layer.running_mean_aerial, var.tolist(), count.item()
        (True, [1.0, 1.0], 0)
    """
    forward = forward_of(layer)
    if forward is None:
        raise DomainError(
            f"this {type(layer).__name__} keeps statistics of no domains\n"
            "  fix: frostline.norms.split_domains(model, [...]) first"
        )
    check_known(name, forward.names)
    mean, var = (layer._buffers[of_domain(key, name)] for key in (forward.own_layout.mean, forward.own_layout.var))
    assert mean is not None
    assert var is not None
    return mean, var, layer._buffers.get(of_domain(COUNT, name))


def check_known(name: object, known: Sequence[str]) -> None:
    """Refuse the name of a domain that there is not.

    Raises:
        DomainError: it names those that there are, and the nearest.
    """
    if name not in known:
        near = state_names.nearest(str(name), known, most=1)
        raise DomainError(
            f"there is no domain {name!r}\n  known: {name_some(known)}" + (f"\n  fix: {near[0]!r}?" if near else "")
        )


# Compiled, it would be compiled anew for each division of a batch, until torch.compile gives the model up. The public
# name of this decorator would import the compiler along with this module, which takes a second.
@_disable_dynamo
def _by_sample(split: DomainForward, tags: Tags, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Each domain's samples by themselves, and the outputs in the order of the batch."""
    if not args:
        first, *rest = kwargs
        args, kwargs = (kwargs[first],), {key: kwargs[key] for key in rest}
    x: Tensor = args[0]
    split.check(tags, x)
    parts = [
        split.in_domain(name, (x.index_select(0, positions.to(x.device)), *args[1:]), kwargs)
        for name, positions in tags.parts
    ]
    return torch.cat(parts).index_select(0, tags.back.to(x.device))


def _index(tags: Sequence[str] | Tensor, known: tuple[str, ...]) -> Tensor:
    """The number of each sample's domain."""
    if isinstance(tags, Tensor):
        if tags.dtype != torch.long or tags.ndim != 1:
            raise DomainError(
                f"tags: expected a vector of int64, the positions of domains in {known}\n"
                f"  found: {tags.dtype} of shape {tuple(tags.shape)}"
            )
        for i in tags.unique().tolist():
            if not 0 <= i < len(known):
                raise DomainError(f"tags: there is no domain {i}\n  known: {name_some(known)} (0 to {len(known) - 1})")
        index = tags
    else:
        if isinstance(tags, str):
            raise DomainError(f"tags: one name for each sample is expected, not the string {tags!r}")
        numbers = {name: i for i, name in enumerate(known)}
        for name in tags:
            check_known(name, known)
        index = torch.tensor([numbers[name] for name in tags], dtype=torch.long)
    if not index.shape[0]:
        raise DomainError("tags: there are none\n  fix: one for each sample of the batch")
    return index
