"""Runs a model twice in simulated train mode and looks whether what is held stays where it is.

Locks and handlers know types; the probe knows nothing and looks. It finds a module that writes a buffer in eval mode,
and a held part that is random although nothing in it is in train mode (``F.dropout(x, p)`` drops by default).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostline.state.arguments import arguments_of
from frostline.state.changes import StateDiff
from frostline.state.digest import digest, digest_all
from frostline.state.snapshot import Snapshot

Call = tuple[str, str]


def probe(
    root: nn.Module, inputs: Any, reference: Snapshot, tops: Mapping[str, nn.Module]
) -> tuple[StateDiff, list[str]]:
    """Run the model twice on example inputs, in train mode, without gradients.

    Everything is put back: modes, every parameter and buffer (held or not), and the random number generators. If what
    is held moved, it is back at its old values when this returns.

    Args:
        root: the model, locked already.
        inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.
        reference: what was held, digested before.
        tops: the topmost held modules, for the test of randomness.

    Returns:
        What moved among the held entries, and the paths of held modules that gave different results for equal inputs.
    """
    runs: list[dict[Call, list[str]]] = []
    args, kwargs = arguments_of(inputs)
    with _everything_put_back(root) as devices, torch.no_grad():
        root.train()
        for seed in (0, 1):
            _seed(seed, devices)
            with _recorded(tops) as calls:
                root(*args, **kwargs)
            runs.append(calls)
        moved = reference.diff(root)
    first, second = runs
    random = sorted({path for path, _ in first.keys() & second.keys() if _differs(first, second, path)})
    return moved, random


def _seed(seed: int, devices: list[int]) -> None:
    """Seed only the generators that are put back; ``torch.manual_seed`` would reach those of all devices."""
    torch.default_generator.manual_seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)


def _differs(first: dict[Call, list[str]], second: dict[Call, list[str]], path: str) -> bool:
    shared = [call for call in first.keys() & second.keys() if call[0] == path]
    return any(first[call] != second[call] for call in shared)


@contextmanager
def _everything_put_back(root: nn.Module) -> Generator[list[int], None, None]:
    modules = list(root.modules())
    modes = [module.training for module in modules]
    tensors = dict([*root.named_parameters(), *root.named_buffers()])
    kept = {path: tensor.detach().clone() for path, tensor in tensors.items()}
    digests = digest_all(tensors)
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (table, dict(table)) for m in modules for table in (m._buffers, m._parameters)
    ]
    devices = sorted({t.device.index for t in tensors.values() if t.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices):
            yield devices
    finally:
        for table, before in tables:
            table.clear()
            table.update(before)
        # Only what moved is written, and through `.data`, which leaves version counters alone: the values are those
        # that a graph has saved which is waiting for its backward pass, so it stays valid.
        for path, now in digest_all(tensors).items():
            if now != digests[path]:
                tensors[path].data.copy_(kept[path])
        # A `train` of the module's own may do more than set flags, so it is called before the flags are written back.
        root.train(modes[0])
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextmanager
def _recorded(tops: Mapping[str, nn.Module]) -> Generator[dict[Call, list[str]], None, None]:
    """Within, what each held module returned is kept under its path and a digest of its inputs."""
    calls: dict[Call, list[str]] = {}

    def recorder(path: str) -> Callable[..., None]:
        def record(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.setdefault((path, "".join(_marks((args, kwargs)))), []).extend(_marks(output))

        return record

    handles = [m.register_forward_hook(recorder(p), with_kwargs=True) for p, m in tops.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _marks(value: Any) -> list[str]:
    if isinstance(value, Tensor):
        return [digest(value)]
    if isinstance(value, Mapping):
        return [mark for item in value.values() for mark in _marks(item)]
    if isinstance(value, (tuple, list)):
        return [mark for item in value for mark in _marks(item)]
    return [repr(value)] if isinstance(value, (int, float, str, bool, type(None))) else []
