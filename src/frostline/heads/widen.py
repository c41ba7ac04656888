"""More classes for a head, while what it says of the old ones stays equal to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import ModelError, name_some
from frostline.heads.class_names import read_names, rows_kept
from frostline.heads.initial import Head, carry_over, kind_of, laid_out_like, layer_around, starting_values
from frostline.heads.plan import HeadChange, HeadPlan, HeadSteps, States
from frostline.heads.seats import find_seats, torch_optimizer, widened_state
from frostline.heads.site import HeadSite, find_head
from frostline.heads.widened import Widened, WidenedConv1d, WidenedConv2d, WidenedConv3d, WidenedLinear
from frostline.state.digest import digest

_WIDENED = {
    nn.Linear: WidenedLinear,
    nn.Conv1d: WidenedConv1d,
    nn.Conv2d: WidenedConv2d,
    nn.Conv3d: WidenedConv3d,
}
# Subclasses with a forward of their own that computes what torch's layer computes.
_SAME_FORWARD = {("timm.layers.linear", "Linear")}


def plan_widen(
    model: nn.Module,
    name: str,
    old_classes: Sequence[str],
    new_classes: Sequence[str],
    *,
    groups: int = 1,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> HeadPlan:
    """Say what :func:`widen` would do. Nothing is changed; arguments and errors are the same.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> print(plan_widen(model, "2", ["cat", "dog"], ["ant", "cat", "dog"]))
        plan: 2: 2 -> 3 outputs (ant, cat, dog), 2 kept
    """
    site = find_head(model, name, "widen")
    before, after = _read_classes(site, old_classes, new_classes, groups)
    _refuse_own_forward(site)
    kept = rows_kept(before, after, groups)
    inner = None if optimizer is None else torch_optimizer(optimizer, site.asked)
    seats = {} if inner is None else find_seats(inner, site.parameters)
    count = len(after) * groups

    def make() -> Head:
        return _wider(site.module, kept, count, generator or torch.Generator().manual_seed(0))

    def states(made: Head) -> States:
        if inner is None:
            return {}
        rows = torch.tensor(kept)
        wider = {key: widened_state(inner, seat, made.get_parameter(key), rows) for key, seat in seats.items()}
        return {key: state for key, state in wider.items() if state is not None}

    notes: list[str] = []
    if not _lies_as_allocated(site.module.weight):
        notes.append(
            "the old weight is a view or transposed in memory, and products may depend on that: old logits can differ "
            "in their last bits (not if it is cloned first)"
        )
    if inner is not None:
        strange = [
            key
            for key, seat in seats.items()
            if widened_state(inner, seat, seat.parameter, torch.arange(site.rows)) is None
        ]
        if strange:
            notes.append(f"the state of {' and '.join(strange)} is dropped: {type(inner).__name__}'s is not by element")
    steps = HeadSteps(model, "widen", site, inner, seats, make, states, (len(before), len(after)))
    return steps.plan(len(kept), after, count, notes)


def widen(
    model: nn.Module,
    name: str,
    old_classes: Sequence[str],
    new_classes: Sequence[str],
    *,
    groups: int = 1,
    optimizer: Optimizer | None = None,
    generator: torch.Generator | None = None,
) -> HeadChange:
    """Add classes to a head, in any order; the logits of the old ones stay equal to the bit.

    Weight and bias of each old class are kept by its name; those of new classes start like a new head's. The head
    becomes a :class:`~frostline.heads.widened.WidenedLinear` (or ``WidenedConv1d/2d/3d``), which multiplies the old
    rows apart from the new ones in exactly the shape that they had: a plain layer with more rows gives other bits for
    the same rows, because how a product is blocked depends on how many there are. It can be widened again, and the
    logits of every class stay what they were when it came. Everything else is as in
    :func:`~frostline.heads.replace.replace_head`: device, dtype, mode and geometry stay, parameters require gradients,
    the attributes ``num_classes`` and ``num_labels`` follow, and either all is changed or nothing.

    Equal to the bit: on the same device, in the same dtype and mode, for the same batch, in eager mode. Compiled, each
    block is still a product of its own, and the logits were equal to those of the compiled model before in every case
    that is tested; but it is the compiler's choice, and not promised. Weights that do not lie in memory as torch
    allocates them (views, memory-mapped files) can differ in the last bits; the result says so. So can the logits of
    inputs of three or more dimensions that are not contiguous, if the old weight did not require gradients: torch
    multiplies these in another way.

    Args:
        model: any module, changed in place.
        name: the dotted path of an ``nn.Linear`` or ``nn.Conv1d/2d/3d``.
        old_classes: the names of the classes that it has, in the order of its outputs.
        new_classes: the names that it shall have, in order; every old one is among them.
        groups: how many times the classes are repeated, class by class within each group: the anchors of a detector
            whose output ``group * len(classes) + class`` belongs to that anchor and class.
        optimizer: the optimizer that trains the model. The parameters are new objects, which sit where the old ones
            sat. What it keeps for each element (momentum, averages of gradients and their squares) moves with the rows
            and starts afresh for new ones; counts of steps stay. A state of another shape (Adafactor's) is dropped,
            which the result says.
        generator: what new rows are drawn from; by default a fresh one with the seed 0.

    Returns:
        The :class:`~frostline.heads.plan.HeadChange`.

    Raises:
        ModelError: the names do not fit the head, an old class is lost, the head computes in its own way, or it cannot
            be replaced (see :func:`~frostline.heads.replace.replace_head`).
        UnsupportedModel: the model is one of ``torch.jit``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> x = torch.ones(5, 4)
        >>> before = model(x)
        >>> print(widen(model, "2", ["cat", "dog"], ["ant", "cat", "dog"]))
        2: 2 -> 3 outputs (ant, cat, dog), 2 kept, 12 parameters
        >>> torch.equal(model(x)[:, [1, 2]], before)
        True
    """
    return plan_widen(
        model, name, old_classes, new_classes, groups=groups, optimizer=optimizer, generator=generator
    ).apply()


def _read_classes(
    site: HeadSite, old_classes: Sequence[str], new_classes: Sequence[str], groups: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    old = read_names(old_classes, "old_classes", site.asked)
    new = read_names(new_classes, "new_classes", site.asked)
    if len(old) * groups != site.rows:
        times = "" if groups == 1 else f" times {groups} groups"
        raise ModelError(
            f"{site.asked}: old_classes does not fit the head\n"
            f"  expected: {site.rows} outputs\n"
            f"  found: {len(old)} names{times}\n"
            "  fix: the names of all classes that the head has, in the order of its outputs"
            + ("; groups=N, if each class has several outputs" if groups == 1 else "")
        )
    lost = sorted(set(old) - set(new), key=old.index)
    if lost:
        raise ModelError(
            f"{site.asked}: new_classes lacks {name_some(lost)}, which the head has\n"
            "  fix: add what is missing, or replace_head(...) for a head that starts anew"
        )
    if not isinstance(site.module, nn.Linear) and site.module.groups != 1:
        raise ModelError(
            f"{site.asked}: with more outputs, the old ones of a convolution with groups={site.module.groups} would "
            "see other channels\n  fix: replace_head(...)"
        )
    return old, new


def _refuse_own_forward(site: HeadSite) -> None:
    cls, kind = type(site.module), kind_of(site.module)
    if isinstance(site.module, Widened) or (cls.__module__, cls.__name__) in _SAME_FORWARD:
        return
    own = [name for name in ("forward", "_conv_forward") if getattr(cls, name, None) is not getattr(kind, name, None)]
    if own:
        raise ModelError(
            f"{site.asked}: {cls.__name__} has a {' and a '.join(own)} of its own, which a widened head would lose\n"
            f"  fix: a head that is an nn.{kind.__name__}, or replace_head(...), which keeps the class"
        )


def _wider(old: Head, kept: Sequence[int], count: int, generator: torch.Generator) -> Head:
    """The widened head, checked by value; the old one is only read."""
    added = sorted(set(range(count)) - set(kept))
    weight, bias = starting_values(old, len(added), generator)
    old_bias: Tensor | None = old.bias
    wide_bias = None if old_bias is None or bias is None else _merged("bias", old_bias, bias, kept, added)
    made = layer_around(old, _merged("weight", old.weight, weight, kept, added), wide_bias)
    carry_over(old, made, _WIDENED[kind_of(old)], but=("blocks",))
    # In the order in which they were multiplied so far, in the numbers of the new head.
    blocks = (old.blocks if isinstance(old, Widened) else ()) or (tuple(range(len(old.weight))),)
    made.set_blocks([*([kept[row] for row in block] for block in blocks), added])
    return made


def _merged(name: str, old: Tensor, start: Tensor, kept: Sequence[int], added: Sequence[int]) -> Tensor:
    old = old.detach()
    rows = torch.empty(len(kept) + len(added), *old.shape[1:], dtype=old.dtype, device=old.device)
    rows[list(kept)] = old
    rows[list(added)] = start
    rows = laid_out_like(old, rows)
    if old.device.type != "meta" and digest(rows[list(kept)], name=name) != digest(old, name=name):
        raise ModelError(f"widen: the old rows of {name} did not arrive unchanged; nothing was changed")
    return rows


def _lies_as_allocated(weight: Tensor) -> bool:
    """Whether a tensor lies in memory as torch allocates it: without gaps, rows first, at an aligned address."""
    dense = weight.is_contiguous()
    if weight.ndim in (4, 5):
        wanted = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
        dense = dense or weight.is_contiguous(memory_format=wanted)
    return dense and (weight.device.type == "meta" or weight.data_ptr() % 64 == 0)
