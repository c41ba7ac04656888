"""What one layer does whose statistics are staged in the forward pass and committed later.

The layer knows nothing of the optimizer; :mod:`frostline.norms.step_commit` decides when to commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.attach.instance_method import InstanceMethod
from frostline.attach.ledger import holds_mode
from frostline.norms.moments import Moments
from frostline.norms.own_forward import COUNT, first_argument, own_forward
from frostline.norms.policy import OncePerStep, StatsPolicy
from frostline.norms.policy_forward import batch_buffers
from frostline.norms.read_policy import stock_policy
from frostline.norms.recompute import recomputing


@dataclass
class Stage:
    """What the layers of one commit share.

    Attributes:
        fresh: whether anything was staged since the last backward pass.
    """

    fresh: bool = False


class StagingForward(InstanceMethod[_BatchNorm]):
    """Stands in for the forward of a batch norm: normalizes as ever, and keeps the batch's statistics for later.

    What is kept is a tensor of three rows, the count, the mean and the sum of squared deviations of each channel. A
    copy of the module has no optimizer that would commit for it, and does what its class does.

    Attributes:
        momentum: the weight of the new value in a commit.
        stage: what the layers of one commit share; ``None`` before it begins, and in a copy.
        waiting: what was staged since the last backward pass.
        used: what was staged before it, and has gone into gradients that are there.
        dropped: how many forward passes were not finite.
    """

    set_by: ClassVar[str] = "frostline step_commit"

    waiting: Tensor
    used: Tensor
    dropped: Tensor

    def __init__(self, module: _BatchNorm, momentum: float) -> None:
        super().__init__(module)
        self.momentum = momentum
        self.stage: Stage | None = None

    def begin(self, stage: Stage) -> None:
        """From now on, stage."""
        mean = self.module.running_mean
        assert mean is not None
        # float64 is what a Mac's GPU lacks.
        dtype = torch.float32 if mean.device.type == "mps" else torch.float64
        self.waiting = torch.zeros(3, mean.shape[0], dtype=dtype, device=mean.device)
        self.used = torch.zeros_like(self.waiting)
        self.dropped = torch.zeros((), dtype=torch.long, device=mean.device)
        self.stage = stage

    def _settings(self) -> tuple[Any, ...]:
        return (self.momentum,)

    @property
    def idle(self) -> bool:
        """Whether it does what the class does, as one that came along with a copy."""
        return self.stage is None

    def policy(self) -> StatsPolicy | None:
        """What the layer does with statistics in its present mode."""
        stock = stock_policy(self.module)
        if self.idle or stock is None or stock.update is None:
            return stock
        return StatsPolicy(stock.use, OncePerStep(self.momentum))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the class; in train mode statistics are staged instead of updated."""
        module, stage = self.module, self.stage
        if stage is None or not module.training or not module.track_running_stats:
            return type(module).forward(module, *args, **kwargs)
        batch = batch_buffers(module)
        out = own_forward(module, args, kwargs, training=True, momentum=1.0, buffers=batch)
        x = first_argument(args, kwargs)
        values = x.numel() // x.shape[1]
        if values and not recomputing():
            self._add(values, batch["running_mean"], batch["running_var"])
            stage.fresh = True
        return out

    def seal(self) -> None:
        """A backward pass began: what waits goes into its gradients."""
        self.used = _merged(self.used, self.waiting)
        self.waiting.zero_()

    def forget(self) -> None:
        """The gradients were cleared: what went into them goes with them."""
        self.used.zero_()

    def staged(self) -> Tensor:
        """All that is staged."""
        return _merged(self.used, self.waiting)

    def commit(self, allowed: Tensor | None) -> None:
        """Move the running statistics by what is staged, and begin anew.

        Args:
            allowed: if given and false, nothing is moved; a tensor, so that nobody waits for the device.
        """
        module = self.module
        count, mean, m2 = self.staged()
        self.waiting.zero_()
        self.used.zero_()
        if holds_mode(module):
            return
        moves = count > 0
        if allowed is not None:
            moves = moves & allowed.to(moves.device)
        var = m2 / (count - 1).clamp(min=1)
        for buffer, value in ((module.running_mean, mean), (module.running_var, var)):
            assert buffer is not None
            now = buffer.to(value.device, value.dtype)
            buffer.copy_(torch.where(moves, now.lerp(value, self.momentum), now))
        batches = module._buffers[COUNT]
        if batches is not None:
            batches.add_(moves.any().to(batches.device))

    def _add(self, values: int, mean: Tensor, var: Tensor) -> None:
        if self.waiting.device != mean.device:
            # The model was moved since.
            self.waiting, self.used = self.waiting.to(mean.device), self.used.to(mean.device)
            self.dropped = self.dropped.to(mean.device)
        mean, var = mean.to(self.waiting.dtype), var.to(self.waiting.dtype)
        new = torch.stack([torch.full_like(mean, values), mean, var * (values - 1)])
        finite = new.isfinite().all()
        self.waiting.copy_(_merged(self.waiting, torch.where(finite, new, 0.0)))
        self.dropped.add_(~finite)


def moments_of(staged: Tensor) -> Moments:
    """Staged rows as :class:`~frostline.norms.moments.Moments`; reads the count, for which it waits.

    Example:
        >>> moments_of(torch.tensor([[2.0], [3.0], [8.0]])).var().item()
        4.0
    """
    return Moments(int(staged[0, 0]), staged[1].clone(), staged[2].clone())


def _merged(a: Tensor, b: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of the union of two sets of values, row by row.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.
    """
    count, delta = a[0] + b[0], b[1] - a[1]
    share = b[0] / count.clamp(min=1)
    return torch.stack([count, a[1] + delta * share, a[2] + b[2] + delta.square() * a[0] * share])
