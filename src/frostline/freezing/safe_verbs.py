"""Two verbs of torch that rebuild or re-estimate every batch norm, made to leave alone what is held."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.attach.ledger import holds_mode, ledger_of
from frostline.errors import NotConverted
from frostline.state import names


@torch.no_grad()
def safe_update_bn(loader: Iterable[Any], model: nn.Module, device: torch.device | str | None = None) -> None:
    """Re-estimate the running statistics of batch norms by one pass over data, for an averaged model.

    Like :func:`torch.optim.swa_utils.update_bn`, with its defects mended. Batch norms that are held keep their
    statistics, and so do those that are in eval mode while the model is in train mode (frozen by hand). The modes of
    all modules and the momenta come back as they were, and if the loader or the model raises, the statistics do too, as
    do those of a layer that no batch came through.

    Args:
        loader: yields batches; of a tuple or list the first element is passed to the model.
        model: the model whose statistics are estimated, with cumulative averages of batch statistics as torch does.
        device: where batches are moved to; ``None`` leaves them where they are.

    Example:
        >>> from frostline.freezing import freeze
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        >>> hold = freeze(model, "0")
        >>> safe_update_bn([torch.randn(8, 2)], model)
        >>> hold.verify().still > 0, int(model[1].num_batches_tracked)
        (True, 1)

    Source: ``torch/optim/swa_utils.py:update_bn``, which resets every batch norm before it sets train mode, so that one
    pinned in eval mode is left at mean 0 and variance 1.
    """
    root = names.unwrap(model)
    modes = {module: module.training for module in root.modules()}
    layers = [
        m
        for m in root.modules()
        if isinstance(m, _BatchNorm)
        and m.running_mean is not None
        and not holds_mode(m)
        and (m.training or not root.training)
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    kept = [[buffer.clone() for buffer in layer.buffers(recurse=False)] for layer in layers]
    done = False
    try:
        # In a model that trains, the layers to estimate do so already, and what the user has in eval mode stays there.
        if not root.training:
            root.train()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        for batch in loader:
            model(_first(batch, device))
        done = True
    finally:
        for layer, momentum, values in zip(layers, momenta, kept, strict=True):
            layer.momentum = momentum
            # A layer that no batch came through has nothing to be estimated from.
            if not done or (layer.num_batches_tracked is not None and not layer.num_batches_tracked):
                for buffer, value in zip(layer.buffers(recurse=False), values, strict=True):
                    buffer.copy_(value)
        for module, mode in modes.items():
            module.training = mode


def _first(batch: Any, device: torch.device | str | None) -> Any:
    value = batch[0] if isinstance(batch, (tuple, list)) else batch
    return value.to(device) if device is not None and isinstance(value, Tensor) else value


def safe_convert_sync_batchnorm(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Turn batch norms into SyncBatchNorm, except those that are held.

    :meth:`torch.nn.SyncBatchNorm.convert_sync_batchnorm` rebuilds each layer, by which a held one would lose its guard
    and its hooks. A held layer needs no synchronization, it does not look at the batch; it stays the object it is.
    Layers that were converted keep their parameters and buffers as the same tensors, and a layer that stands under
    several names is converted once. A subclass with a forward of its own is left alone too, with a warning:
    SyncBatchNorm would lose what it does besides (timm's ``BatchNormAct2d`` its activation).

    Args:
        model: the model, changed in place.
        process_group: as in torch.

    Returns:
        The model; a new layer if the model itself is a batch norm.

    Warns:
        NotConverted: layers with a forward of their own were left alone.

    Example:
        >>> from frostline.freezing import freeze
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
        >>> hold = freeze(model, "0")
        >>> [type(layer).__name__ for layer in safe_convert_sync_batchnorm(model)]
        ['BatchNorm1d', 'SyncBatchNorm']
    """
    converted: dict[nn.Module, nn.Module] = {}
    special = [
        path
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and type(module).forward not in {_BatchNorm.forward, nn.SyncBatchNorm.forward}
        and ledger_of(module) is None
    ]
    if special:
        warnings.warn(
            f"safe_convert_sync_batchnorm: left alone, because they have a forward of their own that SyncBatchNorm "
            f"would lose: {names.name_folded(special)}",
            NotConverted,
            stacklevel=2,
        )

    def convert(module: nn.Module) -> nn.Module:
        plain = isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward
        if not plain or ledger_of(module) is not None:
            return module
        if module not in converted:
            converted[module] = nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        return converted[module]

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and (new := convert(child)) is not child:
                parent._modules[name] = new
    return convert(model)
