"""A batch norm whose result does not depend on its mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

COUNT = "num_batches_tracked"


class FrozenBatchNorm(nn.Module):
    """Normalizes with its running statistics whatever its mode, and never updates them.

    In eval mode it gives what batch norm gives, to the bit, because it asks the same kernel. Only the statistics are
    frozen: weight and bias are parameters, and train where ``requires_grad`` says so. It is no subclass of batch norm,
    so what looks for batch norms to re-estimate passes it by. Its ``state_dict`` has the entries of batch norm's, and
    either loads into the other; one without ``num_batches_tracked``, as torchvision's ``FrozenBatchNorm2d`` writes it,
    loads too.

    Args:
        num_features: channels.
        eps: added to the variance.
        momentum: not used; kept for the way back.
        affine: whether there are weight and bias.
        device: where its tensors lie.
        dtype: their type.

    Attributes:
        lowest: the fewest dimensions that an input may have.
        highest: the most.
        plain_type: the class of batch norm that this was, if it was one.

    Example:
        >>> layer = FrozenBatchNorm(2)
        >>> _ = layer.load_state_dict({**layer.state_dict(), "running_mean": torch.tensor([1.0, 2.0])})
        >>> x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
        >>> layer.train()(x).tolist(), layer.running_mean.tolist()
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 2.0])

    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3.2; ``torchvision/ops/misc.py:
        FrozenBatchNorm2d``, which turns weight and bias into buffers and rounds otherwise than batch norm.
    """

    _version = 2
    lowest: int = 2
    highest: int | None = None
    plain_type: type[_BatchNorm] | None = None
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        # Some tools tell by this attribute which modules have statistics that belong into a checkpoint.
        self.track_running_stats = True
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features, **like)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features, **like)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features, **like))
        self.register_buffer("running_var", torch.ones(num_features, **like))
        self.register_buffer(COUNT, torch.zeros((), dtype=torch.long, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize with the running statistics."""
        # Not an `if`: torch.fx can follow this.
        torch._assert(x.dim() >= self.lowest, "FrozenBatchNorm: the input has too few dimensions")
        if self.highest is not None:
            torch._assert(x.dim() <= self.highest, "FrozenBatchNorm: the input has too many dimensions")
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def extra_repr(self) -> str:
        """What stands in the parentheses when it is printed."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        count = self._buffers.get(COUNT)
        if count is None:
            state_dict.pop(prefix + COUNT, None)
        elif (local_metadata.get("version") or 1) < self._version:
            # As batch norm does for checkpoints from before there was a count.
            state_dict.setdefault(prefix + COUNT, count)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class FrozenBatchNormAct(FrozenBatchNorm):
    """The same with a drop layer and an activation behind it, as timm's ``BatchNormAct2d`` has them.

    Attributes:
        drop: applied to what was normalized.
        act: applied to that.
    """

    drop: nn.Module
    act: nn.Module

    def __init__(self, num_features: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.drop, self.act = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize with the running statistics, drop, activate."""
        return self.act(self.drop(super().forward(x)))
