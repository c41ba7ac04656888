"""A model as a function of its values: parameters, buffers and statistics go in, outputs and statistics come out.

The model itself is never run. A copy of its modules is, which shares no memory with it but for the parameters that are
passed, and which one thread has for itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from frostline.attach.ledger import holds_statistics
from frostline.errors import PolicyError, UnsupportedModel, name_some
from frostline.meta.conv_blocks import Block, BlockSequence, sequences_of
from frostline.meta.normalizing import (
    LayerStatistics,
    normalized_by,
    normalized_by_batch,
    normalized_by_sample,
    normalized_by_task,
    of_batch,
)
from frostline.norms.layers import running_statistics, statistics_of
from frostline.norms.own_forward import own_forward, why_unruly

_STOCK = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_NO_STATISTICS: Mapping[str, LayerStatistics] = {}


@dataclass(frozen=True)
class Pass:
    """With which statistics one forward pass normalizes, and what it tells of those that it met.

    Attributes:
        use: ``batch``; ``given``, the values of ``given``; ``task_norm_l`` and ``task_norm_i``, those of ``given``, or
            the batch itself where there are none, blended with each sample's own; ``instance``; or ``layer``.
        given: statistics by path of the layer.
        shares: for task norm, the weight of the context by path of the layer, a scalar.
        observe: return the statistics of what each layer was given: ``no``, as ``values``, or with their ``graph``.
        vmapped: whether the pass runs under ``vmap``.
        once: whether what comes of the pass is differentiated at most once, so that its backward pass may use up what
            the forward pass has left.
    """

    use: Literal["batch", "given", "task_norm_l", "task_norm_i", "instance", "layer"]
    given: Mapping[str, LayerStatistics] = field(default_factory=lambda: _NO_STATISTICS)
    shares: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    observe: Literal["no", "values", "graph"] = "no"
    vmapped: bool = False
    once: bool = False


class Result:
    """What came of a pass.

    Attributes:
        output: what the model returned.
        observed: statistics by path of the layer; those of a layer that was run more than once are merged.
        buffers: the buffers afterwards, by path.
    """

    def __init__(self, output: Any, observed: dict[str, LayerStatistics], buffers: dict[str, Tensor]) -> None:
        self.output = output
        self.observed = observed
        self.buffers = buffers


class FunctionalModel:
    """Runs a model with parameters, buffers and statistics that are passed as values.

    The model, its buffers, modes and hooks stay as they are, and so does every tensor that is passed. Modes and
    everything else but the values are those of the moment in which this is made. It is one thread's own.

    Args:
        model: any module that can be deep-copied.
        training: the mode of all its modules; by default each has its own.

    Attributes:
        buffers: paths of the buffers that a pass may write, those of the governed layers left out.

    Raises:
        UnsupportedModel: the model has lazy parameters, or cannot be copied.
        PolicyError: a batch norm with a forward of its own does not follow its switches.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> values = {path: p.detach() * 0 for path, p in model.named_parameters()}
        >>> result = FunctionalModel(model)(values, Pass("batch", observe="values"), torch.ones(4, 2))
        >>> result.output.abs().max().item(), result.observed["1"].mean.tolist(), model[1].num_batches_tracked.item()
        (0.0, [0.0, 0.0], 0)
    """

    def __init__(self, model: nn.Module, *, training: bool | None = None) -> None:
        check_not_lazy(model)
        # Parameters are passed with every call; sharing them saves a copy. Sharing is by identity, so ties stay ties.
        shared = {id(parameter): parameter for parameter in model.parameters()}
        try:
            self._model = copy.deepcopy(model, shared)
        except Exception as error:
            raise UnsupportedModel(
                f"this {type(model).__name__} cannot be deep-copied, and tasks run on a copy of it\n"
                f"  found: {type(error).__name__}: {error}\n"
                "  fix: old weight_norm is the usual reason: use torch.nn.utils.parametrizations.weight_norm"
            ) from error
        if training is not None:
            self._model.train(training)
        self._governed = governed_layers(self._model)
        self._device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        self._parameters = _places(self._model, "_parameters")
        own = {f"{path}.{name}" if path else name for path, layer in self._governed.items() for name in layer._buffers}
        self._buffers = {path: place for path, place in _places(self._model, "_buffers").items() if path not in own}
        self._initial = {path: _value(place[0]).clone() for path, place in self._buffers.items()}
        self._rnns = [module for module in self._model.modules() if isinstance(module, nn.RNNBase)]
        self._pass = Pass("batch")
        self._observed: dict[str, LayerStatistics] = {}
        sequences = list(sequences_of(self._model, self._governed))
        for sequence, blocks in sequences:
            sequence.__dict__["forward"] = BlockSequence(sequence, blocks, self._block)
        for path, layer in self._governed.items():
            layer.__dict__["forward"] = _Governed(self, path, layer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._device

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers that a pass may write, as the model had them."""
        return self._initial

    def __call__(
        self, values: Mapping[str, Tensor], settings: Pass, inputs: Any, buffers: Mapping[str, Tensor] | None = None
    ) -> Result:
        """Run the model.

        Args:
            values: the parameters by path, all of them.
            settings: the statistics.
            inputs: the model's argument, or a tuple of its arguments.
            buffers: the buffers by path; by default as the model had them. They are copied before the pass.
        """
        for path, places in self._parameters.items():
            for module, name in places:
                module._parameters[name] = values[path]  # type: ignore[assignment]
        for path, places in self._buffers.items():
            # A pass may write them in place, and what was passed stays what it was.
            value = (self._initial if buffers is None else buffers)[path].clone()
            for module, name in places:
                module._buffers[name] = value
        for rnn in self._rnns:
            rnn._flat_weights = [getattr(rnn, name) for name in rnn._flat_weights_names]
        self._pass, self._observed = settings, {}
        try:
            output = self._model(*inputs) if isinstance(inputs, tuple) else self._model(inputs)
            after = {path: _value(places[0]) for path, places in self._buffers.items()}
            return Result(output, self._observed, after)
        finally:
            # Nothing of a task outlives its pass here: neither its graph nor its statistics.
            self._pass, self._observed = Pass("batch"), {}
            for places in self._parameters.values():
                for module, name in places:
                    module._parameters[name] = None
            for rnn in self._rnns:
                rnn._flat_weights = []

    def normalize(self, path: str, layer: _BatchNorm, x: Tensor) -> Any:
        """What stands in for the forward of a governed layer."""
        settings = self._pass
        if x.numel() == 0:
            raise PolicyError(f"batch norm {path!r} was given an empty batch of shape {tuple(x.shape)}")
        layer._check_input_dim(x)
        if type(layer).forward in _STOCK:
            return self._normalized(path, x, layer.weight, layer.bias, layer.eps, settings)
        # A class with a forward of its own, which adds an activation: it finds statistics that change nothing.
        standard = self._normalized(path, x, None, None, layer.eps, settings)
        like = x.new_zeros(x.shape[1], dtype=layer.weight.dtype if layer.affine else x.dtype)
        neutral = {"running_mean": like, "running_var": torch.full_like(like, 1 - layer.eps)}
        return own_forward(layer, (standard,), {}, training=False, buffers=neutral)

    def _block(self, block: Block, x: Any, own: bool) -> Tensor | None:
        settings = self._pass
        if settings.use != "batch" or settings.observe == "graph" or settings.vmapped:
            return None
        found = block.run(x, consume=own and settings.once)
        if found is None:
            return None
        if settings.observe == "values":
            self._saw(block.path, found[1])
        return found[0]

    def _normalized(
        self, path: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, settings: Pass
    ) -> Tensor:
        use, observe = settings.use, settings.observe
        needs_batch = use == "batch" or (use.startswith("task_norm") and path not in settings.given)
        if needs_batch and x.numel() == x.shape[1]:
            raise PolicyError(
                f"batch norm {path!r} is to use the statistics of its batch, and was given one value per channel "
                f"(input of shape {tuple(x.shape)}), which has no variance\n"
                "  fix: more examples in a pass, or a policy that uses given statistics there"
            )
        if use == "batch" and observe != "graph":
            y, seen = normalized_by_batch(x, weight, bias, eps, observe=observe == "values", vmapped=settings.vmapped)
            self._saw(path, seen)
            return y
        seen = of_batch(x) if needs_batch or observe == "graph" else None
        if observe != "no":
            self._saw(path, of_batch(x.detach()) if seen is None else seen if observe == "graph" else seen.detached())
        if use == "batch":
            assert seen is not None
            return normalized_by(x, seen, weight, bias, eps)
        if use == "given":
            return normalized_by(x, settings.given[path], weight, bias, eps)
        if use in ("instance", "task_norm_i") and x.ndim == 2:
            raise PolicyError(
                f"policy {use!r} takes moments over space, and batch norm {path!r} has an input without space, of "
                f"shape {tuple(x.shape)}\n  fix: 'layer' or 'task_norm_l', which take them over channels"
            )
        if use in ("instance", "layer"):
            return normalized_by_sample(x, weight, bias, eps, over_channels=use == "layer")
        context = settings.given.get(path, seen)
        assert context is not None
        over_channels = use == "task_norm_l"
        return normalized_by_task(x, context, settings.shares[path], weight, bias, eps, over_channels=over_channels)

    def _saw(self, path: str, seen: LayerStatistics | None) -> None:
        if seen is not None:
            before = self._observed.get(path)
            self._observed[path] = seen if before is None else before.merged(seen)


class _Governed:
    """The forward of one governed layer."""

    def __init__(self, owner: FunctionalModel, path: str, layer: _BatchNorm) -> None:
        self._owner = owner
        self._path = path
        self._layer = layer

    def __call__(self, input: Tensor) -> Any:  # noqa: A002 - PyTorch's own name for it
        return self._owner.normalize(self._path, self._layer, input)


def governed_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The layers that a statistics policy decides over: every batch norm but held ones, which keep their own.

    Raises:
        PolicyError: one does not follow its switches, or a layer of another kind uses the batch.

    Example:
        >>> list(governed_layers(nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2))))
        ['0']
    """
    found: dict[str, _BatchNorm] = {}
    for path, module in model.named_modules():
        if holds_statistics(module):
            continue
        if isinstance(module, _BatchNorm):
            reason = None if type(module).forward in _STOCK else why_unruly(module)
            if reason is not None:
                raise PolicyError(f"no statistics policy can govern {path!r}: {reason}")
            found[path] = module
            continue
        use = statistics_of(module)
        if use is not None and use.uses == "batch":
            raise PolicyError(
                f"{path!r} ({type(module).__name__}) normalizes with its batch and is no batch norm of PyTorch, so "
                "that no statistics policy can govern it\n"
                "  fix: a subclass of torch's BatchNorm, or hold it with fl.freeze"
            )
    return found


def own_statistics(layer: _BatchNorm) -> LayerStatistics | None:
    """A copy of what a batch norm keeps in its buffers; ``None`` if it keeps nothing."""
    buffers = running_statistics(layer)
    return None if buffers is None else LayerStatistics(buffers[0].detach().clone(), buffers[1].detach().clone())


def check_not_lazy(model: nn.Module) -> None:
    """Refuse a model with parameters or buffers that have no shape yet.

    Raises:
        UnsupportedModel: the first few are named.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [path for path, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise UnsupportedModel(
            f"{type(model).__name__} has lazy layers, whose shapes are not known yet\n"
            f"  found: {name_some(lazy)}\n"
            "  fix: run one batch through the model first, before the learner and its optimizer are made"
        )


def _places(model: nn.Module, kind: str) -> dict[str, list[tuple[nn.Module, str]]]:
    """Each tensor by its first path, with every place that holds it, so that ties stay ties."""
    path_of: dict[int, str] = {}
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules():
        for name, tensor in getattr(module, kind).items():
            if tensor is None:
                continue
            path = path_of.setdefault(id(tensor), f"{prefix}.{name}" if prefix else name)
            places.setdefault(path, []).append((module, name))
    return places


def _value(place: tuple[nn.Module, str]) -> Tensor:
    module, name = place
    value = module._buffers[name]
    assert value is not None
    return value
