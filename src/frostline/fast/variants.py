"""Other ways to compute a frozen prefix: folded, in another memory format, in a narrower type, compiled.

They run on a copy; the model, its keys and its optimizer are not touched.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_unflatten

from frostline.attach.ledger import KEY, ledger_of
from frostline.errors import CannotConvert, FastError, NothingSelected
from frostline.fast.cut import Cut
from frostline.freezing.mode_lock import is_locked, unlock
from frostline.norms.convert import fold
from frostline.state import names
from frostline.state.roles import is_norm
from frostline.state.selection import exactly

WORDS = ("folded", "channels_last", "compiled")


@dataclass(frozen=True)
class Variant:
    """How a prefix is computed.

    Attributes:
        folded: batch norms are folded into the layers before them, where that is right.
        channels_last: images lie in memory with their channels last, which many kernels are faster with.
        compiled: by ``torch.compile``.
        autocast: a narrower type that autocast computes in; features keep their own type.

    Example:
        >>> str(Variant(folded=True, autocast=torch.bfloat16)), str(PLAIN)
        ('folded, bfloat16', 'plain')
    """

    folded: bool = False
    channels_last: bool = False
    compiled: bool = False
    autocast: torch.dtype | None = None

    def __str__(self) -> str:
        words = [word for word in WORDS if getattr(self, word)]
        words += [str(self.autocast).removeprefix("torch.")] if self.autocast else []
        return ", ".join(words) or "plain"

    def tolerance(self, root: nn.Module, cut: Cut) -> float:
        """What rounding explains, relative to the largest feature.

        A layer that sums ``n`` products rounds each by half an eps of its type, which adds up like a random walk to
        ``eps * sqrt(n)``; and it passes on what the layers before it have missed: the layers of a prefix add up.
        Autocast sums in float32, and rounds what goes into a layer and what comes out of it: ``4 * eps *
        sqrt(layers)`` of the narrower type beside that. Measured on ResNet-50 (53 layers, allowed 2e-4 and 0.23): 6e-7
        folded with channels last at weights as they are initialized, 6e-5 with statistics that fit them, 6e-3 in
        bfloat16.
        """
        layers = [m for path in cut.modules for m in root.get_submodule(path).modules() if _sums_over(m)]
        wide = torch.finfo(torch.float32).eps * max(1.0, sum(math.sqrt(_sums_over(layer)) for layer in layers))
        if self.autocast is None:
            return wide
        return wide + 4 * torch.finfo(self.autocast).eps * math.sqrt(max(1, len(layers)))


PLAIN = Variant()


def variant_of(words: Iterable[str], autocast: torch.dtype | None) -> Variant:
    """The variant that some words name.

    Raises:
        FastError: there is no such word, or autocast has no such type.
    """
    chosen = PLAIN
    for word in words:
        if word not in WORDS:
            raise FastError(f"prefix({word!r}): no such variant\n  fix: some of {', '.join(WORDS)}, and autocast=")
        chosen = replace(chosen, **{word: True})
    if autocast not in {None, torch.bfloat16, torch.float16}:
        raise FastError(f"prefix(autocast={autocast}): no such type\n  fix: torch.bfloat16 or torch.float16")
    return replace(chosen, autocast=autocast)


def derive(root: nn.Module, cut: Cut, variant: Variant) -> nn.Module:
    """What a variant runs: the model itself where nothing of it has to change, otherwise a copy.

    Raises:
        FastError: there is nothing to fold.
    """
    if not (variant.folded or variant.channels_last or variant.compiled):
        return root
    model = copy.deepcopy(root)
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(False)
    for path, mode in cut.training.items():
        _set_free(model.get_submodule(path), training=mode)
    if variant.folded:
        _fold(model, cut)
    if variant.channels_last:
        for path in cut.modules:
            model.get_submodule(path).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if variant.compiled:
        for path in cut.modules:
            module = model.get_submodule(path)
            if any(True for _ in module.parameters()):
                module.forward = torch.compile(module.forward)
    return model


def _set_free(module: nn.Module, *, training: bool) -> None:
    """Release a module of a copy from its hold, unless the hold also keeps it from writing its own tensors."""
    ledger = ledger_of(module)
    if ledger is None or ledger.handlers:
        return
    if is_locked(module):
        unlock(module, (training, None))
    del module.__dict__[KEY]


def _fold(model: nn.Module, cut: Cut) -> None:
    norms = [
        names.join(path, inner)
        for path in cut.modules
        for inner, module in model.get_submodule(path).named_modules()
        if is_norm(module)
    ]
    try:
        fold(model, *map(exactly, norms), inputs=_arguments(model, cut))
    except (CannotConvert, NothingSelected) as error:
        raise FastError(
            f"prefix('folded'): there is no batch norm to fold in {', '.join(cut.modules[:8])}\n"
            f"  found: {str(error).splitlines()[0]}\n  fix: leave out 'folded'"
        ) from error


def _arguments(model: nn.Module, cut: Cut) -> dict[str, Any] | tuple[Any, ...]:
    """Arguments to run the model on once, to see what goes where."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    args, kwargs = tree_unflatten(cut.made_up(2, device), cut.spec)
    return inspect.signature(model.forward).bind(*args, **kwargs).arguments if kwargs else args


def _sums_over(module: nn.Module) -> int:
    """How many products an output of a layer sums over; 0 for what is no such layer."""
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim < 2 or isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return 0
    return weight[0].numel()
