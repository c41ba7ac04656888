"""Domain-specific batch norm: the current domain of a model whose layers are split, and the way back to plain layers.

Two views that go through one batch norm one after the other leave running statistics that describe neither. A better
estimate of the mixture does not repair that, because in training each view was normalized by itself; statistics of its
own for each do (:mod:`frostline.norms.domain_split` makes them).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.attach.ledger import holds_statistics
from frostline.errors import DomainError, NonFiniteStatistics, name_some
from frostline.norms.domain_forward import (
    DomainForward,
    Tags,
    check_known,
    domain_buffers,
    forward_of,
    of_domain,
    remove_domains,
)
from frostline.state import names as state_names
from frostline.tables import html_text

MIXTURE = "mixture"


@dataclass(frozen=True)
class Domains:
    """The split layers of a model.

    Attributes:
        root: the model, without wrappers.
        names: the domains.
        paths: the layers.
    """

    root: nn.Module
    names: tuple[str, ...]
    paths: tuple[str, ...]

    def __str__(self) -> str:
        folded = state_names.name_folded(self.paths, rest="domains.paths")
        return f"{len(self.paths)} layers of {type(self.root).__name__} by domain ({', '.join(self.names)}): {folded}"

    def _repr_html_(self) -> str:
        return html_text(self)

    def tags(self, tags: Sequence[str] | Tensor) -> AbstractContextManager[None]:
        """:func:`domain` with a tag for each sample."""
        return domain(self.root, tags=tags)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the split has added, for ``optimizer.add_param_group({"params": ...})``."""
        added = [
            layer._parameters[of_domain(key, name)]
            for layer in self._layers().values()
            for key in _forward(layer).parameters
            for name in self.names
        ]
        return [parameter for parameter in added if parameter is not None]

    def undo(self) -> None:
        """Bring back the layers with the statistics that they had before the split; all layers or none.

        Parameters keep their values where the domains shared them, and return to those of before where not.

        Raises:
            DomainError: a layer is held, or no longer split.
        """
        for layer in self._changeable("undo").values():
            remove_domains(layer, self.names)

    def merge(self, into: str = MIXTURE, *, weights: Mapping[str, float] | None = None) -> None:
        """Bring back plain layers with one set of statistics: one domain's, or those of a mixture; all layers or none.

        Classes, ``state_dict`` keys, the parameter and buffer objects and the forward pass are then what they were
        before the split; statistics are written into the buffers that were there.

        The variance of a mixture is by the law of total variance, that within the domains and that between their means.
        Nothing says that the mixture serves a model whose domains were normalized one by one; measure it.

        Args:
            into: the domain whose statistics (and weight and bias, if not shared) the layers keep, or ``"mixture"``.
            weights: the share of each domain in the mixture; counts of samples will do. Equal by default.

        Raises:
            DomainError: the domain is unknown, the weights do not fit, a layer is held, or each domain has weight and
                bias of its own, which have no mixture.
            NonFiniteStatistics: a domain's statistics are not finite and would spoil the mixture.

        Example:
            >>> from frostline.norms.domain_split import split_domains
            >>> layer = nn.BatchNorm1d(1)
            >>> domains = split_domains(layer, ["ground", "aerial"])
            >>> _ = layer.running_mean_aerial.fill_(4)
            >>> domains.merge(weights={"ground": 1, "aerial": 3})
            >>> layer.running_mean.item(), layer.running_var.item(), list(layer.state_dict())
            (3.0, 4.0, ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'])

        Source:
            Chan et al. 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
        """
        check_known(into, (*self.names, MIXTURE))
        if into != MIXTURE and weights is not None:
            raise DomainError(f"merge(into={into!r}): weights belong to the mixture\n  fix: leave them out")
        layers = self._changeable("merge")
        writes: list[tuple[Tensor, Tensor]] = []
        if into == MIXTURE:
            shares = self._shares(layers, weights)
            for path, layer in layers.items():
                writes += _values_of_mixture(path, layer, shares)
        else:
            for layer in layers.values():
                writes += _values_of(layer, into)
        before = [(target, target.detach().clone()) for target, _ in writes]
        try:
            _write(writes)
        except BaseException:
            _write(before)
            raise
        for layer in layers.values():
            remove_domains(layer, self.names)

    def _shares(self, layers: Mapping[str, nn.Module], weights: Mapping[str, float] | None) -> dict[str, float]:
        own = [path for path, layer in layers.items() if _forward(layer).parameters]
        if own:
            raise DomainError(
                f"merge(into={MIXTURE!r}): each domain has weight and bias of its own, which have no mixture\n"
                f"  where: {name_some(own)}\n  fix: merge(into={self.names[0]!r}), or another domain"
            )
        given = dict.fromkeys(self.names, 1.0) if weights is None else dict(weights)
        usable = all(math.isfinite(w) and w >= 0 for w in given.values()) and sum(given.values()) > 0
        if set(given) != set(self.names) or not usable:
            raise DomainError(
                f"merge: expected a weight of zero or more for each of {', '.join(self.names)}, not all of them zero\n"
                f"  found: {given}"
            )
        return {name: given[name] / sum(given.values()) for name in self.names}

    def _layers(self) -> dict[str, nn.Module]:
        found = {path: layer for path, layer in self.root.named_modules() if path in self.paths and forward_of(layer)}
        if len(found) < len(self.paths):
            gone = [path for path in self.paths if path not in found]
            raise DomainError(
                f"no longer split: {name_some(gone)}\n  fix: split_domains again, or domains_of(model) for those left"
            )
        return found

    def _changeable(self, verb: str) -> dict[str, nn.Module]:
        layers = self._layers()
        held = [path for path, layer in layers.items() if holds_statistics(layer)]
        if held:
            raise DomainError(
                f"{verb}: {len(held)} of {len(layers)} layers are held: {name_some(held)}\n  fix: thaw them first"
            )
        return layers


def domains_of(model: nn.Module) -> Domains:
    """Find the split layers of a model, of a part of it, or of a copy.

    Raises:
        DomainError: none is split, or parts are split into different domains.

    Example:
        >>> from frostline.norms.domain_split import split_domains
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> _ = split_domains(model, ["ground", "aerial"])
        >>> print(domains_of(model))
        1 layers of Sequential by domain (ground, aerial): 0
    """
    root, forwards = _find(model)
    return Domains(root, next(iter(forwards.values())).names, tuple(forwards))


@contextmanager
def domain(model: nn.Module, name: str | None = None, *, tags: Sequence[str] | Tensor | None = None) -> Generator[None]:
    """Within the block, forward passes are of this domain; or, with tags, each sample of the batch is of its own.

    Blocks nest, and hold for this model alone, or for the part of it that is given. What was current before is current
    again afterwards, on exceptions too. A batch with tags is normalized, and updates statistics, as if the samples of
    each domain had been passed by themselves; a domain without samples stays as it is.

    A part under activation checkpointing runs a second time in ``backward``, and then needs its domain again: call
    ``backward`` inside the block. Threads that share a model share its domain. Under ``torch.compile`` each domain is
    compiled once; with tags the layers themselves run uncompiled, which ``fullgraph=True`` refuses.

    Args:
        model: a model with split layers, or a part; wrappers are looked through.
        name: the domain.
        tags: instead of ``name`` the domain of each sample: names, or a vector of their positions in the names that the
            model was split into.

    Raises:
        DomainError: the domain is unknown, no layer is split, or neither or both of ``name`` and ``tags`` are given.

    Example:
        >>> from frostline.norms.domain_split import split_domains
        >>> model = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> _ = split_domains(model, ["ground", "aerial"])
        >>> _ = model[0].running_mean_aerial.fill_(3)
        >>> with domain(model, tags=["aerial", "ground"]):
        ...     model(torch.tensor([[5.0], [5.0]])).round().flatten().tolist()
        [2.0, 5.0]
    """
    forwards = list(_find(model)[1].values())
    known = forwards[0].names
    now: str | Tags
    if name is not None and tags is None:
        check_known(name, known)
        now = name
    elif tags is not None and name is None:
        now = Tags(tags, known, domain_buffers(forwards[0].module, known[0])[0].device)
    else:
        raise DomainError("domain: give either the name of a domain, or tags, one for each sample of the batch")
    before = [forward.now for forward in forwards]
    try:
        for forward in forwards:
            forward.now = now
        yield
    finally:
        for forward, earlier in zip(forwards, before, strict=True):
            forward.now = earlier


def _find(model: nn.Module) -> tuple[nn.Module, dict[str, DomainForward]]:
    """The unwrapped model, and the forwards of its split layers."""
    root = state_names.unwrap(model)
    found = {path: forward for path, layer in root.named_modules() if (forward := forward_of(layer))}
    if not found:
        raise DomainError(
            f"no layer of {type(root).__name__} keeps statistics by domain\n"
            "  fix: frostline.norms.split_domains(model, [...]) first"
        )
    first = next(iter(found))
    other = next((path for path in found if found[path].names != found[first].names), None)
    if other is not None:
        raise DomainError(
            f"parts of {type(root).__name__} are split into different domains\n"
            + "".join(f"  {path}: {name_some(found[path].names)}\n" for path in (first, other))
            + "  fix: name the part: domain(model.part, ...)"
        )
    return root, found


def _values_of(layer: nn.Module, name: str) -> list[tuple[Tensor, Tensor]]:
    """The layer's own tensors, and what a domain has in their place."""
    split = _forward(layer)
    pairs = [(layer._buffers[key], layer._buffers[of_domain(key, name)]) for key in split.buffers]
    pairs += [(layer._parameters[key], layer._parameters[of_domain(key, name)]) for key in split.parameters]
    return [(target, value) for target, value in pairs if target is not None and value is not None]


def _values_of_mixture(path: str, layer: nn.Module, shares: Mapping[str, float]) -> list[tuple[Tensor, Tensor]]:
    """The layer's own tensors, and the statistics of the mixture; counts of batches add up."""
    of_domains = {name: domain_buffers(layer, name) for name in shares}
    for name, (mean, var, _) in of_domains.items():
        if not bool(mean.isfinite().all() and var.isfinite().all()):
            raise NonFiniteStatistics(
                f"merge: the statistics of {name!r} in layer {path!r} are not finite, and would spoil the mixture\n"
                f"  fix: estimate them anew, or merge(into=...) another domain"
            )
    means = torch.stack([mean.double() for mean, _, _ in of_domains.values()])
    variances = torch.stack([var.double() for _, var, _ in of_domains.values()])
    share = torch.tensor(list(shares.values()), dtype=torch.float64, device=means.device)[:, None]
    mean = (share * means).sum(0)
    # Instance norm keeps the variance within samples alone, of which the mixture's is the mean.
    between = 0 if _forward(layer).own_layout.instances else (means - mean).square()
    var = (share * (variances + between)).sum(0)
    counts = [count for _, _, count in of_domains.values() if count is not None]
    values = [mean, var, torch.stack(counts).sum(0)] if counts else [mean, var]
    targets = [layer._buffers[key] for key in _forward(layer).buffers]
    return [(target, value) for target, value in zip(targets, values, strict=True) if target is not None]


def _forward(layer: nn.Module) -> DomainForward:
    found = forward_of(layer)
    assert found is not None
    return found


def _write(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for target, value in pairs:
            target.copy_(value)
