"""State that eval mode does not protect, by type: what has to be done so that it stays, and undone afterwards.

A handler is a value with three verbs. Handlers compare equal by their settings, so that nested holds share one.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from frostline.attach.instance_method import InstanceMethod, install, uninstall
from frostline.errors import CannotFreeze
from frostline.norms.layers import has_running_statistics

# What torch.nn.parallel.replicate calls on each module.
_REPLICATE = "_replicate_for_data_parallel"


@runtime_checkable
class Handler(Protocol):
    """What a type needs beyond eval mode."""

    def applies(self, module: nn.Module) -> bool:
        """Whether this module needs it."""
        ...

    def attach(self, module: nn.Module) -> Any:
        """Do it; returns what :meth:`detach` needs to undo it exactly."""
        ...

    def detach(self, module: nn.Module, before: Any) -> None:
        """Undo it."""
        ...


@dataclass(frozen=True)
class ObserverOff:
    """Fake quantizers go on observing in eval mode: their switch is a buffer, ``observer_enabled``, not the mode."""

    def applies(self, module: nn.Module) -> bool:
        """Modules with the switch that ``torch.ao.quantization.FakeQuantizeBase`` has."""
        return isinstance(module._buffers.get("observer_enabled"), Tensor)

    def attach(self, module: nn.Module) -> Tensor:
        """Switch observing off."""
        switch = module._buffers["observer_enabled"]
        assert switch is not None
        before = switch.clone()
        switch.zero_()
        return before

    def detach(self, module: nn.Module, before: Tensor) -> None:
        """Put the switch back to where it was."""
        switch = module._buffers["observer_enabled"]
        assert switch is not None
        switch.copy_(before)


class _PassThrough(InstanceMethod[nn.Module]):
    """Stands in for the forward of an observer, which returns its input."""

    def __call__(self, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class ObserverPassThrough:
    """An observer by itself has no switch and looks at whatever passes; it returns its input, so it may look away."""

    def applies(self, module: nn.Module) -> bool:
        """Subclasses of ``torch.ao.quantization.ObserverBase``, told by name so that nothing is imported."""
        return any(cls.__name__ == "ObserverBase" for cls in type(module).__mro__)

    def attach(self, module: nn.Module) -> object | None:
        """Replace the forward of this one module."""
        return install(module, "forward", _PassThrough(module))

    def detach(self, module: nn.Module, before: object | None) -> None:
        """Take the replacement out."""
        uninstall(module, "forward", _PassThrough, before)


class _KeptForward(InstanceMethod[nn.Module]):
    """Stands in for the forward of a module that writes its own tensors: it writes to copies of them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        with _lent_copies(module):
            return type(module).forward(module, *args, **kwargs)


class _NoReplica(InstanceMethod[nn.Module]):
    """Stands in for what DataParallel copies a module with.

    A replica shares the replaced forward, and would run the original module with its tensors: of another device, and in
    several threads at once, one of which takes the other's copies for the tensors themselves.
    """

    def __call__(self) -> nn.Module:
        raise CannotFreeze(
            f"DataParallel: a {type(self.module).__name__} is held that writes its own tensors in forward, and a "
            "replica would write to those of the original.\n"
            "  fix: DistributedDataParallel, in which each process has a model of its own; or thaw that layer"
        )


@contextmanager
def _lent_copies(module: nn.Module) -> Generator[None, None, None]:
    """Within, the module and all below it own copies of their tensors; afterwards the tensors themselves, untouched."""
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for child in module.modules():
            both: tuple[dict[str, Any], dict[str, Any]] = (child._buffers, child._parameters)
            for table in both:
                tables.append((table, dict(table)))
                for name, tensor in table.items():
                    if isinstance(tensor, nn.Parameter):
                        if not tensor.requires_grad:
                            # Not wrapped in a Parameter, which torch.compile cannot make without breaking the graph.
                            table[name] = tensor.detach().clone()
                    elif tensor is not None:
                        table[name] = tensor.clone()
        yield
    finally:
        for table, before in tables:
            table.clear()
            table.update(before)


@dataclass(frozen=True)
class KeepTensors:
    """The module's forward writes its own tensors in every mode: let it write to copies that are thrown away.

    Fits a codebook that learns by moving averages, an embedding with ``max_norm``, a counter. Costs a copy of the
    module's tensors in each forward pass. The output is what the module computes from the kept values.
    """

    def applies(self, module: nn.Module) -> bool:
        """Embeddings with ``max_norm``, instance norms that update in eval mode; users name other types."""
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            return module.max_norm is not None
        # With its flag flipped to False an instance norm writes its buffers in eval mode, unlike a batch norm.
        return isinstance(module, _InstanceNorm) and has_running_statistics(module) and not module.track_running_stats

    def attach(self, module: nn.Module) -> tuple[object | None, object | None]:
        """Wrap the forward of this one module, and refuse to be copied by ``nn.DataParallel``."""
        return install(module, "forward", _KeptForward(module)), install(module, _REPLICATE, _NoReplica(module))

    def detach(self, module: nn.Module, before: tuple[object | None, object | None]) -> None:
        """Take the wrapper out."""
        uninstall(module, "forward", _KeptForward, before[0])
        uninstall(module, _REPLICATE, _NoReplica, before[1])


@dataclass(frozen=True)
class RecurrentDropoutOff:
    """A recurrent layer keeps the mode it is asked for, and drops nothing.

    cuDNN refuses the backward pass of an RNN in eval mode ("cudnn RNN backward can only be called in training mode"),
    which a held layer in the middle of a model needs. It has no statistics, and train mode with dropout 0 gives the
    output of eval mode to the bit.
    """

    def applies(self, module: nn.Module) -> bool:
        """RNN, LSTM and GRU with the forward that torch gave them."""
        return keeps_own_mode(module)

    def attach(self, module: nn.Module) -> float:
        """Set dropout to 0."""
        assert isinstance(module, nn.RNNBase)
        before, module.dropout = module.dropout, 0.0
        return before

    def detach(self, module: nn.Module, before: float) -> None:
        """Put dropout back."""
        assert isinstance(module, nn.RNNBase)
        module.dropout = before


KNOWN: tuple[Handler, ...] = (ObserverOff(), ObserverPassThrough(), KeepTensors(), RecurrentDropoutOff())


def handlers_for(module: nn.Module, extra: Mapping[type[nn.Module], Handler]) -> list[Handler]:
    """What this module needs: the user's handler for its type, and the known ones.

    Example:
        >>> handlers_for(nn.LSTM(2, 2), {})
        [RecurrentDropoutOff()]
        >>> handlers_for(nn.Linear(2, 2), {})
        []
    """
    given = [handler for cls, handler in extra.items() if isinstance(module, cls)]
    return given or [handler for handler in KNOWN if handler.applies(module)]


def keeps_own_mode(module: nn.Module) -> bool:
    """Whether a held module follows the mode it is asked for, because nothing in it depends on the mode any more.

    That is known of torch's recurrent layers only: a subclass with a forward of its own may look at the mode, and a
    buffer in one belongs to something that was hung onto it (the older spectral norm) and goes by the mode.
    """
    plain = type(module).forward in {nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward}
    return isinstance(module, nn.RNNBase) and plain and not module._buffers


def is_lazy(module: nn.Module) -> bool:
    """Whether the module has parameters or buffers without a shape yet."""
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return any(t is not None and torch.nn.parameter.is_lazy(t) for t in tensors)
