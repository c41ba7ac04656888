"""What is read off the scores of a query set."""

from __future__ import annotations

from torch import Tensor


def share_right(scores: Tensor, labels: Tensor) -> float:
    """The share of examples whose highest score is their label's.

    Example:
        >>> import torch
        >>> share_right(torch.eye(3), torch.tensor([0, 1, 0])) == torch.tensor(2 / 3).item()
        True
    """
    return (scores.argmax(1) == labels).float().mean().item()
