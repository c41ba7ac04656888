"""DistributedDataParallel around a model of which a part is held: wrapping it, and wrapping it anew when that changes.

It takes in the parameters that require a gradient when it is made (``live_wrappers``), so every thaw and every freeze
after that needs another one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frostline.errors import CannotFreeze, CannotThaw, FreezeError, RanksDiffer
from frostline.freezing.across_ranks import in_every, verify_ranks
from frostline.freezing.live_wrappers import allow, exchanged_by, minded_by
from frostline.freezing.rank_comparison import RankEntry, compare_entries
from frostline.state.digest import digest_all

CommHook = tuple[object, Callable[..., Any]]
_MB = 1024 * 1024
# They differ between versions of torch.
_ARGUMENTS = inspect.signature(DistributedDataParallel.__init__).parameters


def wrap(model: nn.Module, **settings: Any) -> DistributedDataParallel:
    """Wrap a model in DistributedDataParallel, after making sure that all processes hold the same.

    Torch itself overwrites what the other processes have with what rank 0 has, held or not, and says nothing. Unless
    the settings say otherwise, buffers are not broadcast from rank 0 before each forward pass: what is held is equal
    anyway, and running statistics of what trains would else be those of rank 0's data alone. Each process keeps the
    statistics of its own data then: call :func:`frostline.norms.merge_statistics` before evaluating and saving. In
    torch 2.6 and some versions after it those broadcasts also make ``backward`` fail after two forward passes.

    Two heads that are trained in one backward pass have to be computed in one forward pass: with
    ``find_unused_parameters=True`` torch refuses two ("marked as ready twice").

    Args:
        model: what is to be trained, held in part.
        **settings: as for ``torch.nn.parallel.DistributedDataParallel``.

    Returns:
        The wrapper.

    Raises:
        RanksDiffer: what is held, or which part it is, is not the same on all processes. Then nothing was done.

    Source: pytorch/pytorch issues 22095 and 175024, pull request 175851.
    """
    verify_ranks(model, process_group=settings.get("process_group"))
    if "broadcast_buffers" in settings or "forward_sync_buffers" in settings:
        return DistributedDataParallel(model, **settings)
    if "forward_sync_buffers" in _ARGUMENTS:
        return DistributedDataParallel(model, **settings, forward_sync_buffers=False)
    # Before torch 2.13 the argument would also keep rank 0's buffers from being sent once, at the beginning.
    wrapper = DistributedDataParallel(model, **settings)
    wrapper.broadcast_buffers = False
    return wrapper


def rewrap(
    wrapper: DistributedDataParallel, change: Callable[[], object], *, comm_hook: CommHook | None = None
) -> DistributedDataParallel:
    """Thaw or freeze a part of a wrapped model, and wrap it anew if other parameters train afterwards.

    ``ddp = rewrap(ddp, hold.thaw)``, ``ddp = rewrap(ddp, unfreezing.epoch_end)`` or
    ``ddp = rewrap(ddp, lambda: fl.freeze(ddp.module, "trunk"))``. Every process has to call it, between steps: a loss
    whose forward pass went through the old wrapper is not averaged any more. Values, gradients and statistics stay as
    they are on each process, gradients that were accumulated too; nothing is broadcast. The optimizer need not know.

    The new wrapper has the settings, the mode and the forward hooks of the old one. The old one is dead: its hooks are
    off the parameters, its buckets freed, and it refuses to run. A communication hook keeps account of buckets, which
    are others now, and cannot be carried over: name the one that the new wrapper gets.

    Args:
        wrapper: the wrapper in use.
        change: what thaws or freezes; called once, without arguments.
        comm_hook: ``(state, hook)`` as for ``register_comm_hook``, for a wrapper that has one.

    Returns:
        The wrapper to go on with: a new one, or the same where the same parameters train.

    Raises:
        CannotThaw: the wrapper has settings that cannot be read back, or is within ``no_sync``; nothing was done.
        RanksDiffer: processes hold other parts before the change, and nothing was done; or they are not alike after
            it, or it failed on another one. Then the change is made, and the old wrapper as it was.
        CannotFreeze: nothing is left that trains. Then the change is made, and the old wrapper as it was.
    """
    given: Any = wrapper
    if not isinstance(given, DistributedDataParallel):
        raise FreezeError(
            f"rewrap: expected a DistributedDataParallel, got {type(given).__name__}.\n"
            "  fix: pass the wrapper itself, and compile the new one"
        )
    group = wrapper.process_group
    settings: dict[str, Any] = {}
    in_every(lambda: settings.update(_settings_of(wrapper, comm_hook)), "rewrap", group)
    verify_ranks(wrapper.module, process_group=group)
    before = exchanged_by(wrapper)
    _make(change, wrapper)
    minded = minded_by(wrapper)
    _verify_alike(minded, before, group)
    trained = {id(parameter) for parameter in minded.values() if parameter.requires_grad}
    if trained == before.keys():
        return wrapper
    if not trained:
        raise CannotFreeze(
            "rewrap: nothing is left that trains, and DistributedDataParallel cannot wrap that.\n"
            "  fix: go on with ddp.module; there are no gradients to exchange"
        )
    anew = _made_like(wrapper, settings)
    if comm_hook is not None:
        anew.register_comm_hook(*comm_hook)
    _retire(wrapper)
    return anew


def _make(change: Callable[[], object], wrapper: DistributedDataParallel) -> None:
    """Make the change on every process, in which the wrapper does not stand in its way."""

    def make() -> None:
        change()

    allow(wrapper, True)
    try:
        in_every(make, "rewrap: the change is made here, but", wrapper.process_group)
    finally:
        allow(wrapper, False)


def _verify_alike(minded: Mapping[str, nn.Parameter], before: Mapping[int, nn.Parameter], group: Any) -> None:
    """Refuse processes that train other parameters now, or begin to train from other values."""
    flags = {f"{path}.requires_grad": RankEntry("requires_grad", p.requires_grad) for path, p in minded.items()}
    began = {path: p for path, p in minded.items() if p.requires_grad and id(p) not in before}

    def values() -> dict[str, RankEntry]:
        marks = digest_all(began)
        return {p: RankEntry("parameter", marks[p], str(t.dtype), tuple(t.shape)) for p, t in began.items()}

    for told in (lambda: flags, values):
        comparison = compare_entries(in_every(told, "rewrap", group), "everything")
        if comparison.differences:
            raise RanksDiffer(f"rewrap: the change is made, the wrapper is as it was. {comparison}", comparison)


def _settings_of(wrapper: DistributedDataParallel, comm_hook: CommHook | None) -> dict[str, Any]:
    """What a wrapper was made with.

    Raises:
        CannotThaw: it cannot be read back.
    """
    own: dict[str, Any] = vars(wrapper)
    manual = "change the part, del ddp, and make a new one by hand"
    if type(wrapper) is not DistributedDataParallel:
        why, fix = f"it is a {type(wrapper).__name__}, and what that was made with is not known", manual
    elif "reducer" not in own:
        why, fix = "it was replaced by an earlier rewrap", "ddp = rewrap(ddp, ...), and go on with the result"
    elif not wrapper.require_backward_grad_sync:
        why, fix = "it is within no_sync()", "call it between steps"
    elif own.get("mixed_precision") is not None:
        why, fix = "its mixed precision has hung hooks on the model that cannot be taken off", "use torch.autocast"
    elif own.get("_delay_all_reduce_params"):
        why, fix = "it delays the exchange of some parameters, and which hook does so is not known", manual
    elif "buffer_hook" in own:
        why, fix = "a hook for its buffers is registered", manual
    elif comm_hook is None and (hook := wrapper._get_ddp_logging_data().get("comm_hook")):
        why = f"the communication hook {hook} is registered, which keeps account of buckets that will be others"
        fix = "rewrap(ddp, change, comm_hook=(state, hook)), with a new state"
    else:
        return _read(wrapper)
    raise CannotThaw(f"rewrap: this DistributedDataParallel cannot be made anew: {why}\n  fix: {fix}")


def _read(wrapper: DistributedDataParallel) -> dict[str, Any]:
    own: dict[str, Any] = vars(wrapper)
    sizes = [size / _MB for size in own.get("bucket_bytes_cap_list", ())]
    given = None if own.get("bucket_bytes_cap_default", False) else wrapper.bucket_bytes_cap / _MB
    return {
        "device_ids": wrapper.device_ids,
        "output_device": wrapper.output_device,
        "dim": wrapper.dim,
        "process_group": wrapper.process_group,
        "bucket_cap_mb": None if sizes else given,
        "bucket_cap_mb_list": sizes or None,
        "find_unused_parameters": wrapper.find_unused_parameters,
        "gradient_as_bucket_view": wrapper.gradient_as_bucket_view,
        "static_graph": wrapper.static_graph,
        "forward_sync_buffers": wrapper.broadcast_buffers,
        "skip_all_reduce_unused_params": own.get("skip_all_reduce_unused_params", False),
        "batched_grad_copy": own.get("batched_grad_copy", False),
    }


def _made_like(wrapper: DistributedDataParallel, settings: Mapping[str, Any]) -> DistributedDataParallel:
    # Nothing may be sent from rank 0: each process may have statistics of its own. Where torch cannot be told so, it
    # sends the parameters, which are equal.
    silent = {"init_sync": False} if "init_sync" in _ARGUMENTS else {"broadcast_buffers": False}
    with warnings.catch_warnings():
        # It has warned of its settings when the first wrapper was made.
        warnings.simplefilter("ignore")
        anew = DistributedDataParallel(
            wrapper.module, **silent, **{name: value for name, value in settings.items() if name in _ARGUMENTS}
        )
    anew.broadcast_buffers = wrapper.broadcast_buffers
    anew.require_forward_param_sync = wrapper.require_forward_param_sync
    anew.training = wrapper.training
    for name, value in vars(wrapper).items():
        # The very dictionaries, so that handles on the old wrapper's hooks still remove them.
        if "hooks" in name and isinstance(value, dict):
            vars(anew)[name] = value
    return anew


def _retire(wrapper: DistributedDataParallel) -> None:
    """Take a wrapper's hooks off the parameters, and let it run no more."""
    for handle in vars(wrapper).get("_accum_grad_hooks", ()):
        handle.remove()
    # The reducer takes its hooks off when it goes; the logger has it too.
    wrapper.logger = None
    del wrapper.reducer
    wrapper.forward = _refuse


def _refuse(*_: object, **__: object) -> None:
    raise FreezeError(
        "this DistributedDataParallel was replaced: other parameters train now, and it would not exchange their "
        "gradients\n  fix: ddp = frostline.freezing.rewrap(ddp, ...), and go on with the result"
    )
