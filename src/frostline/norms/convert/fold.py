"""Folding batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.norms.convert.conversion import layers_in
from frostline.norms.convert.dims import dims_of_convolution, said_by_class
from frostline.norms.convert.families import kind_of, missing_parts, own_doing, own_tensors
from frostline.norms.convert.fold_step import FoldStep, why_grasped
from frostline.norms.convert.folded_weights import folded
from frostline.norms.convert.places import Place, places_of, plain_references
from frostline.norms.convert.plan import ConversionPlan, ConversionResult, ConversionRow, nothing_to_do
from frostline.norms.convert.watched import watched_sources
from frostline.norms.convert.wiring import Source, traced_sources
from frostline.norms.layers import statistics_of
from frostline.state import names
from frostline.state.aliases import find_aliases
from frostline.state.selection import Selector

_LINEAR = {
    *((cls.__module__, cls.__name__) for cls in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    *((cls.__module__, cls.__name__) for cls in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    # Pads in its forward, and is a convolution otherwise.
    ("timm.layers.conv2d_same", "Conv2dSame"),
}


def plan_fold(model: nn.Module, *selectors: Selector, inputs: Any = None) -> ConversionPlan:
    """Say what :func:`fold` would do. The model is only read; arguments and errors are the same.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()
        >>> print(plan_fold(model))
        Sequential: fold, 1 layers
        layer  from         to        exact  note
        ─────  ───────────  ────────  ─────  ────...
        1      BatchNorm2d  Identity  no     into 0 (Conv2d): equal up to rounding of its weights, 6e-08 of each
        left as it is: 3: it follows '2' (ReLU)
    """
    root = names.unwrap(model)
    layers = layers_in(root, selectors, verb="fold")
    kinds = {path: kind for path, m in layers.items() if path and (kind := kind_of(m)) and kind.family != "instance"}
    candidates = {path: layers[path] for path in kinds}
    if not candidates:
        raise nothing_to_do("fold", model, {"": "there is nothing before it"} if layers.keys() == {""} else {})
    sources = traced_sources(root, candidates) if inputs is None else watched_sources(root, candidates, inputs)
    view = _View(root, places_of(model), plain_references(root))
    rows: list[ConversionRow] = []
    steps: list[FoldStep] = []
    skipped: dict[str, str] = {}
    for path, layer in candidates.items():
        kind = kinds[path]
        why = own_doing(layer, kind.known) or missing_parts(layer, kind) or view.why_not(layer, sources[path])
        if why:
            skipped[path] = why
            continue
        source = sources[path]
        step = FoldStep(path, layer, source.path, root.get_submodule(source.path), view.places[id(layer)][0])
        steps.append(step)
        rows.append(ConversionRow(path, type(layer).__name__, step.leaves, False, step.note))
    if not rows:
        raise nothing_to_do("fold", model, skipped)
    return ConversionPlan(model, "fold", tuple(rows), skipped, (), tuple(steps))


def fold(model: nn.Module, *selectors: Selector, inputs: Any = None) -> ConversionResult:
    """Fold batch norms into the layer before them: its weights do the work of both, and in eval mode it gives the same.

    Only where it can be shown to be right: the layer before is a convolution (transposed too) or linear layer whose
    output goes into that batch norm and nowhere else, neither is shared, hooked, held or has a forward of its own, and
    the batch norm normalizes with its running statistics, which are finite and not negative. The rest is left as it is,
    with the reason in the plan. A batch norm *before* a convolution is not folded into it: its shift does not pass
    through zero padding.

    The layer before stays the object it is, with its Parameter, whose values change; ``requires_grad`` is kept. A bias
    where there was none is a new Parameter, which trains if the batch norm's did, or the weight where there was none;
    no optimizer knows of it. In place of the batch norm stands :class:`torch.nn.Identity`, or the drop layer and the
    activation that it had (timm). There are no statistics any more: recalibrate before, not afterwards.

    Args:
        model: any module, changed in place; in the mode in which it is to be used.
        *selectors: which batch norms; all by default.
        inputs: a tensor, tuple of arguments or mapping of keyword arguments to run the model on once, to see what goes
            where. Without, ``torch.fx`` traces the model, which some models do not allow; and as it does not see
            shapes, ``BatchNorm1d`` is then left alone: behind a linear layer its channels need not be those of the
            layer.

    Returns:
        The :class:`~frostline.norms.convert.plan.ConversionResult`, whose ``undo`` puts the batch norms and the old
        weights back.

    Raises:
        CannotConvert: nothing can be folded, a layer is lazy, the model cannot be traced, or the check failed.
        NothingSelected: a selector matches nothing.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
        >>> x = torch.ones(1, 3, 2, 2)
        >>> before = model(x)
        >>> result = fold(model)
        >>> torch.allclose(model(x), before, atol=1e-6), model[1], model[0].bias.requires_grad
        (True, Identity(), True)

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks", section 3.2;
        ``torch/nn/utils/fusion.py:fuse_conv_bn_eval``, whose new bias never trains, and which does not look at what
        else uses the convolution.
    """
    return plan_fold(model, *selectors, inputs=inputs).apply()


class _View:
    """What has to be known of a model to fold in it."""

    def __init__(self, root: nn.Module, places: dict[int, list[Place]], elsewhere: dict[int, str]) -> None:
        self.root, self.places, self._elsewhere = root, places, elsewhere
        tensors = {**dict(root.named_parameters(remove_duplicate=False)), **dict(root.named_buffers())}
        self._aliases = find_aliases({path: t for path, t in tensors.items() if not _has_no_values(t)})

    def why_not(self, layer: nn.Module, source: Source) -> str | None:
        """Why a batch norm cannot be folded, if it cannot."""
        if why := why_grasped(layer):
            return why
        use = statistics_of(layer)
        if use is None or use.uses != "running":
            return "it normalizes with the batch: " + ("set eval mode" if layer.training else "it keeps no statistics")
        if not source.path:
            return source.why_not
        before = self.root.get_submodule(source.path)
        name = f"{source.path!r} ({type(before).__name__})"
        if not before._parameters.keys() >= {"weight", "bias"}:
            return f"the weight of {name} is computed from other tensors (parametrized or pruned)"
        if any(map(_has_no_values, [*own_tensors(layer), *own_tensors(before)])):
            return f"it or {name} has no values (lazy, or on the meta device)"
        known = next(cls for cls in type(before).__mro__ if (cls.__module__, cls.__name__) in _LINEAR)
        if why := why_grasped(before) or own_doing(before, known):
            return f"{name}: {why}"
        for each, said in ((layer, "it"), (before, name)):
            if why := self._why_shared(each):
                return f"{said} {why}"
        own = [names.join(source.path, key) for key in before._parameters]
        if any(each in self._aliases for each in own):
            return f"the weights of {name} are tied to others"
        return _why_shapes_differ(layer, before, name, source.ndim) or _why_not_finite(layer, before, name)

    def _why_shared(self, module: nn.Module) -> str | None:
        places = self.places.get(id(module), [])
        if len(places) > 1:
            return "stands in several places"
        if any(place.name == "_orig_mod" for place in places):
            return "is compiled by itself: fold first, and compile afterwards"
        if id(module) in self._elsewhere:
            return f"is also referred to by {self._elsewhere[id(module)]!r}"
        return None


def _has_no_values(tensor: Tensor) -> bool:
    return is_lazy(tensor) or tensor.is_meta


def _why_shapes_differ(layer: nn.Module, before: nn.Module, name: str, ndim: int | None) -> str | None:
    """Whether the channels of a batch norm may not be those that the layer before it gives."""
    mean = layer._buffers["running_mean"]
    width = before.out_features if isinstance(before, nn.Linear) else before.out_channels
    if mean is None or mean.shape[0] != width:
        return f"{name} gives {width} channels, which are not its own"
    dims = dims_of_convolution(before) or 0
    if ndim is None and (dims < 2 or said_by_class(layer) != dims):
        return f"whether {name} gives it channels or positions is not known without inputs="
    if ndim is not None and ndim != dims + 2:
        return f"its channels are not those of {name}, whose output has {ndim} dimensions"
    return None


def _why_not_finite(layer: nn.Module, before: nn.Module, name: str) -> str | None:
    mean, var = layer._buffers["running_mean"], layer._buffers["running_var"]
    assert mean is not None
    assert var is not None
    if not bool(mean.isfinite().all() & var.isfinite().all() & (var >= 0).all()):
        return "its running statistics are not finite, or a variance is negative"
    if bool((var + float(layer.eps) <= 0).any()):  # type: ignore[arg-type]
        return "it divides by 0: a variance and eps are 0"
    if not all(bool(tensor.isfinite().all()) for tensor in folded(before, layer)):
        return f"the weights of {name} would overflow in {str(before.weight.dtype).removeprefix('torch.')}"  # type: ignore[union-attr]
    return None
