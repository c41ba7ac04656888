"""Which places a head's parameters have in an optimizer, and how new ones take them.

Groups are edited in place, so that their rates, names and everything that refers to them (schedulers) stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from frostline.attach.inner_optimizer import inner_optimizer
from frostline.errors import ModelError

# What state entries start from where that is not zero: type of optimizer and key to the option of the group.
_STARTS = {("Adagrad", "sum"): "initial_accumulator_value", ("Rprop", "step_size"): "lr"}


@dataclass(frozen=True, eq=False)
class Seat:
    """The place of a parameter in an optimizer.

    Attributes:
        group: the index of its group.
        position: where in the group.
        parameter: what sits there.
    """

    group: int
    position: int
    parameter: nn.Parameter


def torch_optimizer(optimizer: object, asked: str) -> Optimizer:
    """The torch optimizer that was meant; wrappers such as accelerate's are looked through.

    Raises:
        ModelError: it is none, or one that keeps its state for all parameters together.
    """
    inner = inner_optimizer(optimizer)
    if not isinstance(inner, Optimizer):
        raise ModelError(
            f"{asked}: optimizer={type(optimizer).__name__} is no torch.optim.Optimizer\n"
            "  fix: pass the torch optimizer itself"
        )
    if isinstance(inner, LBFGS):
        raise ModelError(
            f"{asked}: LBFGS keeps its directions as one vector over all parameters, of which none can be exchanged\n"
            "  fix: leave the optimizer out, and make a new LBFGS afterwards"
        )
    return inner


def find_seats(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Seat]:
    """The places of those parameters that have one.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> seats = find_seats(torch.optim.SGD(layer.parameters(), lr=0.1), dict(layer.named_parameters()))
        >>> seats["bias"].group, seats["bias"].position
        (0, 1)
    """
    wanted = {id(parameter): name for name, parameter in parameters.items()}
    return {
        wanted[id(parameter)]: Seat(group, position, parameter)
        for group, options in enumerate(optimizer.param_groups)
        for position, parameter in enumerate(options["params"])
        if id(parameter) in wanted
    }


def reseat(
    optimizer: Optimizer,
    seats: Mapping[str, Seat],
    new: Mapping[str, nn.Parameter],
    states: Mapping[str, dict[str, Any]],
    undo: ExitStack,
) -> None:
    """Put new parameters into the places of the old ones, with this state or none.

    Args:
        optimizer: changed in place.
        seats: the old ones, by name.
        new: the new ones, by name.
        states: the state of the new ones, by name; none where it is missing or empty.
        undo: where what undoes each step is put before the step.
    """
    before = dict(optimizer.state)
    undo.callback(_set_state, optimizer, before)
    for name, seat in seats.items():
        parameters: list[nn.Parameter] = optimizer.param_groups[seat.group]["params"]
        undo.callback(parameters.__setitem__, seat.position, seat.parameter)
        parameters[seat.position] = new[name]
    by_old = {id(seat.parameter): name for name, seat in seats.items()}
    after: dict[Any, Any] = {}
    for key, state in before.items():
        name = by_old.get(id(key))
        if name is None:
            after[key] = state
        elif states.get(name):
            after[new[name]] = states[name]
    _set_state(optimizer, after)


def _set_state(optimizer: Optimizer, state: dict[Any, Any]) -> None:
    optimizer.state.clear()
    optimizer.state.update(state)


def first_state(optimizer: Optimizer, seat: Seat, new: nn.Parameter) -> dict[str, Any]:
    """What an optimizer needs to find for a parameter that it never stepped; nothing for all but Adagrad."""
    if not isinstance(optimizer, torch.optim.Adagrad) or seat.parameter not in optimizer.state:
        return {}
    old = optimizer.state[seat.parameter]
    value = optimizer.param_groups[seat.group]["initial_accumulator_value"]
    return {"step": torch.zeros_like(old["step"]), "sum": torch.full_like(new.detach(), value)}


def widened_state(optimizer: Optimizer, seat: Seat, new: nn.Parameter, rows: Tensor) -> dict[str, Any] | None:
    """The state of a parameter with more rows: what is kept element by element moves with its rows, the rest stays.

    Args:
        optimizer: where the state is; it is only read.
        seat: the old parameter's place.
        new: the new parameter.
        rows: for each row of the old one its row in the new one.

    Returns:
        The state; ``None`` if it holds something else, whose meaning for more rows is unknown.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> seat = find_seats(optimizer, dict(layer.named_parameters()))["weight"]
        >>> widened_state(optimizer, seat, nn.Parameter(torch.zeros(2, 2)), torch.tensor([1]))
        {'momentum_buffer': tensor([[0., 0.],
                [1., 1.]])}
    """
    if seat.parameter not in optimizer.state:
        return {}
    group = optimizer.param_groups[seat.group]
    kept: dict[str, Any] = {}
    state: dict[str, Any] = optimizer.state[seat.parameter]
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == seat.parameter.shape:
            start = group.get(_STARTS.get((type(optimizer).__name__, key), ""), 0.0)
            wider = torch.empty_like(new.detach(), dtype=value.dtype, device=value.device).fill_(start)
            kept[key] = wider.index_copy_(0, rows.to(value.device), value)
        elif value is None or isinstance(value, (bool, int, float, str)) or _is_scalar(value):
            kept[key] = value
        else:
            return None
    return kept


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0
