"""What one layer under a policy does in its forward pass."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.attach.instance_method import InstanceMethod
from frostline.attach.ledger import holds_mode
from frostline.errors import NormsError
from frostline.norms.own_forward import COUNT, first_argument, own_forward
from frostline.norms.policy import EMA, Blend, StatsPolicy, Update
from frostline.norms.read_policy import stock_policy
from frostline.norms.recompute import recomputing


class PolicyForward(InstanceMethod[nn.Module]):
    """Stands in for the forward of a batch norm that follows a policy in train mode, another in eval mode, or both.

    The class' own forward does the normalizing, so types, gradients and whatever else the class does are its own. A
    held layer is in eval mode and does what eval mode does, whatever the policy says: a hold wins.

    Attributes:
        train: the policy in train mode; ``None`` is what the class does.
        eval: likewise in eval mode.
    """

    set_by: ClassVar[str] = "frostline policy"

    def __init__(self, module: nn.Module, train: StatsPolicy | None, eval: StatsPolicy | None) -> None:  # noqa: A002
        super().__init__(module)
        self.train = train
        self.eval = eval

    def _settings(self) -> tuple[Any, ...]:
        return self.train, self.eval

    def policy(self) -> StatsPolicy | None:
        """What the layer does with statistics in its present mode."""
        return self._now(self.module) or stock_policy(self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the class, with the statistics that the policy says."""
        module = self.module
        policy = self._now(module)
        if policy is None:
            return type(module).forward(module, *args, **kwargs)
        # An empty batch has no statistics. Activation checkpointing runs the same batch a second time.
        x = first_argument(args, kwargs)
        update = policy.update if x.numel() else None
        again = recomputing()
        if update is not None and not again:
            _check_values(module, x)
        if policy.use == "batch":
            return _with_batch(module, update, again, args, kwargs)
        if update is not None and not again:
            _update_from(module, x.detach(), update)
        if policy.use == "running":
            # A copy, if they move: in the backward pass they still have to be what the output was made with.
            buffers = {} if policy.update is None else {key: _buffer(module, key).clone() for key in _STATISTICS}
            return own_forward(module, args, kwargs, training=False, buffers=buffers)
        assert isinstance(policy.use, Blend)
        return _blended(module, policy.use.batch_weight, args, kwargs)

    def _now(self, module: nn.Module) -> StatsPolicy | None:
        return None if holds_mode(module) else self.train if module.training else self.eval


_STATISTICS = ("running_mean", "running_var")
# Statistics do not depend on it; PyTorch insists on a positive one.
_ANY_EPS = 1.0


def _with_batch(module: nn.Module, update: Update, again: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if update is None:
        return own_forward(module, args, kwargs, training=True, tracks=False)
    if isinstance(update, EMA) and not again:
        return own_forward(module, args, kwargs, training=True, momentum=update.momentum)
    # PyTorch's cumulative average reads the count, which waits for the device and which torch.compile cannot trace.
    # A repetition needs buffers to throw away, because checkpointing checks that as many tensors are saved as before.
    batch = batch_buffers(module)
    out = own_forward(module, args, kwargs, training=True, momentum=1.0, buffers=batch)
    if not again:
        _average(module, batch)
    return out


def _update_from(module: nn.Module, x: Tensor, update: Update) -> None:
    """Update the running statistics as a batch norm in train mode does, and normalize nothing."""
    if isinstance(update, EMA):
        mean, var = (_buffer(module, key) for key in _STATISTICS)
        functional.batch_norm(x, mean, var, None, None, True, update.momentum, _ANY_EPS)
        count = module._buffers[COUNT]
        if count is not None:
            count.add_(1)
    else:
        batch = batch_buffers(module)
        functional.batch_norm(x, batch["running_mean"], batch["running_var"], None, None, True, 1.0, _ANY_EPS)
        _average(module, batch)


def _average(module: nn.Module, batch: dict[str, Tensor]) -> None:
    count = _buffer(module, COUNT).add_(1)
    for key in _STATISTICS:
        running = _buffer(module, key)
        # In half precision a count above 256 would be rounded.
        running.add_(_at_least_float(batch[key] - running) / count)


def _blended(module: nn.Module, share: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Normalize with a blend, and leave the rest to the class, which finds statistics that change nothing."""
    x = first_argument(args, kwargs)
    running_mean, running_var = (_buffer(module, key) for key in _STATISTICS)
    values = _at_least_float(x)
    var, mean = torch.var_mean(values, [d for d in range(x.ndim) if d != 1], correction=0)
    mean = share * mean + (1 - share) * running_mean
    var = share * var + (1 - share) * running_var
    eps = float(module.eps)  # type: ignore[arg-type]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    standard = ((values - mean.view(shape)) * (var + eps).rsqrt().view(shape)).to(x.dtype)
    if args:
        args = (standard, *args[1:])
    else:
        kwargs = {**kwargs, next(iter(kwargs)): standard}
    buffers = {"running_mean": torch.zeros_like(running_mean), "running_var": torch.full_like(running_var, 1 - eps)}
    return own_forward(module, args, kwargs, training=False, buffers=buffers)


def batch_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Fresh buffers, into which a batch norm writes the mean and the unbiased variance of its batch with momentum 1.

    Example:
        >>> layer, x = nn.BatchNorm1d(1), torch.tensor([[1.0], [3.0]])
        >>> batch = batch_buffers(layer)
        >>> _ = own_forward(layer, (x,), {}, training=True, momentum=1.0, buffers=batch)
        >>> batch["running_mean"].item(), batch["running_var"].item(), layer.running_mean.item()
        (2.0, 2.0, 0.0)
    """
    own = ((key, module._buffers[key]) for key in (*_STATISTICS, COUNT))
    return {key: torch.zeros_like(buffer) for key, buffer in own if buffer is not None}


def _at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def _buffer(module: nn.Module, key: str) -> Tensor:
    buffer = module._buffers[key]
    assert buffer is not None
    return buffer


def _check_values(module: nn.Module, x: Tensor) -> None:
    """Refuse, before anything is counted, what the class refuses and what has no variance."""
    module._check_input_dim(x)  # type: ignore[operator]
    # Synchronized, one value for each process can be enough.
    if x.numel() == x.shape[1] and not isinstance(module, nn.SyncBatchNorm):
        raise NormsError(
            f"{type(module).__name__} is to update its statistics, and was given one value per channel (input of shape "
            f"{tuple(x.shape)}), which has no variance\n"
            "  fix: larger batches (drop_last=True drops a last batch of one sample)"
        )
