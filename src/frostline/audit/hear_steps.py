"""Listens to backward passes, optimizer steps and what is done to gradients between them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostline.audit.events import Backward, Clip, Step, ZeroGrad
from frostline.audit.loss_graph import leaves_of, reduction_of
from frostline.audit.model_watch import ModelWatch
from frostline.audit.optimizer_watch import OptimizerWatch
from frostline.audit.places import frames, variables
from frostline.audit.recorder import Recorder
from frostline.audit.rows import Row
from frostline.state import names

# So many backward passes are followed back to their leaves.
_WALKS = 2
# So many parameters of an optimizer are asked whether their gradient was cleared.
_SAMPLE = 8


class StepListener:
    """Hears ``backward``, ``step``, ``zero_grad``, gradient scalers and clipping."""

    def __init__(self, recorder: Recorder, after_step: Callable[[int], None] | None) -> None:
        self._recorder = recorder
        self._after_step = after_step
        self._backwards = 0
        self._walked = 0
        self._nested = 0
        self._event: dict[str, Any] = {}
        self._stale_before: dict[tuple[str, str], tuple[Row, Tensor]] = {}
        self._scale = 1.0
        self._scaled = False

    # -- backward -----------------------------------------------------------------------------------------------------

    def around_backward(self, original: Any, args: Any, kwargs: Any) -> Any:
        """A backward pass."""
        recorder = self._recorder
        given = args[0] if args else kwargs.get("tensors")
        with recorder.work():
            roots = [given] if isinstance(given, Tensor) else list(cast("Iterable[Any]", given or []))
            outside: list[tuple[int, ...]] = []
            if self._walked < _WALKS:
                self._walked += 1
                outside = [tuple(leaf.shape) for leaf in self._unknown(leaves_of(roots))]
            left = sum(optimizer.look_for_cleared(_SAMPLE) for optimizer in recorder.optimizers)
            for watch in recorder.models:
                if watch.waiting_forwards:
                    watch.backwards += 1
                    watch.waiting_forwards = 0
                    if watch.contract_at is None:
                        recorder.take_contract(watch)
            mean, count, scale = reduction_of(roots)
            recorder.add(
                Backward,
                outside=tuple(outside),
                left=0 if self._backwards else left,
                mean=mean,
                count=count,
                scale=scale,
                in_step=recorder.in_step is not None,
            )
            self._backwards += 1
            for optimizer in recorder.optimizers:
                optimizer.backwards += 1
                optimizer.cleared_after_backward = False
        return original(*args, **kwargs)

    def _unknown(self, leaves: Iterable[Tensor]) -> list[Tensor]:
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        self._recorder.discover_owners(leaves)
        return [leaf for leaf in leaves if self._recorder.watch_of(leaf) is None]

    # -- steps --------------------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, *_: Any) -> None:
        """An optimizer is about to step."""
        recorder = self._recorder
        with recorder.work():
            if recorder.in_step is not None and _is_nested(optimizer):
                self._nested += 1
                return
            self._nested = 0
            watch = recorder.optimizer(optimizer)
            if not watch.steps:
                recorder.name_anew(watch)
                recorder.discover_owners(watch.parameters)
            for model in recorder.models:
                if model.contract_at is None and watch.owns_of(model):
                    recorder.take_contract(model)
            for model in recorder.models:
                if model.contract_at is not None:
                    model.settle(recorder.owned(), recorder.steps)
                    rows = model.scan(recorder.steps, in_step=False)
                    model.suspect(model.compare(rows, recorder.steps, in_step=False))
            self._event = self._step(watch)
            if watch.fused and not watch.steps:
                watch.digests = watch.marks()
            recorder.in_step = watch

    def _step(self, watch: OptimizerWatch) -> dict[str, Any]:
        tensors = list(watch.parameters)
        own, others = {id(t) for t in tensors}, self._recorder.owned()
        self._stale_before = {}
        for model in self._recorder.models:
            for row in model.parameter_rows:
                if id(row.tensor) not in own and id(row.tensor) in others:
                    continue
                row.steps += 1
                grad = row.tensor.grad
                if grad is None:
                    continue
                row.gradients += 1
                if not row.tensor.requires_grad and id(row.tensor) in own:
                    self._stale_before[(model.name, row.path)] = row, row.tensor.detach().clone()
        grads = [t.grad for t in tensors if t.grad is not None]
        if watch.has_modes:
            watch.in_train_mode.append(watch.train_mode)
        return {
            "optimizer": watch.name,
            "rates": watch.note_rates(),
            "forwards": watch.forwards,
            "backwards": watch.backwards,
            "rows": tuple(watch.rows),
            "tensors": len(tensors),
            "without_grad": len(tensors) - len(grads),
            "all_zero": not any(bool(g.any()) for g in grads) if watch.cleared_after_backward and grads else None,
            # Only where nobody clears: then they may pile up.
            "grad_norm": _norm(grads) if not watch.zero_grads and grads else None,
            "stale": tuple(self._stale_before),
            "carried": None if not watch.steps else 0 if watch.cleared else len(grads),
            "unscaled": not self._scaled,
        }

    def after_step(self, optimizer: Optimizer, *_: Any) -> None:
        """An optimizer has stepped."""
        recorder = self._recorder
        if self._nested:
            self._nested -= 1
            return
        with recorder.work():
            watch = recorder.optimizer(optimizer)
            now = recorder.steps + 1
            for model in recorder.models:
                if model.contract_at is not None:
                    self._look_at(model, watch, now)
            recorder.in_step = None
            recorder.add(Step, **self._event, stale_moved=self._stale_moved())
            recorder.steps = now
            watch.stepped()
            self._backwards = 0
        if self._after_step is not None:
            self._after_step(recorder.steps)

    def _look_at(self, model: ModelWatch, watch: OptimizerWatch, now: int) -> None:
        rows = model.scan(now, in_step=True)
        model.suspect(model.compare(rows, now, in_step=True))
        if watch.fused and not watch.steps:
            # Fused kernels write past the version counters: here the bytes have to tell.
            moved = {id(t) for t, mark in watch.marks().items() if watch.digests.get(t) != mark}
            for row in model.parameter_rows:
                row.in_step += id(row.tensor) in moved
        due = now % self._recorder.every == 0
        model.suspect(model.check(now, parameters=due or watch.fused, in_step=watch.fused and watch.owns_of(model)))

    def _stale_moved(self) -> tuple[tuple[str, str, float], ...]:
        found: list[tuple[str, str, float]] = []
        for (model, path), (row, before) in self._stale_before.items():
            gap = float((row.tensor.detach() - before).abs().max()) if before.numel() else 0.0
            if gap or not torch.equal(row.tensor, before):
                found.append((model, path, gap))
        self._stale_before = {}
        return tuple(found)

    # -- gradients ----------------------------------------------------------------------------------------------------

    def around_zero_grad(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``zero_grad`` of an optimizer or a module."""
        recorder, owner = self._recorder, args[0]
        with recorder.work():
            to_none = bool(kwargs.get("set_to_none", args[1] if len(args) > 1 else True))
            if isinstance(owner, Optimizer):
                watch = recorder.optimizer(owner)
                concerned, name = [watch], watch.name
            else:
                inner = names.unwrap(owner)
                parameters = {id(p) for p in inner.parameters()}
                concerned = [w for w in recorder.optimizers if any(id(p) in parameters for p in w.parameters)]
                model = recorder.watch_of(inner)
                name = model.name if model else type(owner).__name__
            for watch in concerned:
                watch.zero_grads += 1
                watch.cleared = True
                watch.cleared_after_backward = watch.backwards > 0
            recorder.add(
                ZeroGrad,
                owner=name,
                of_optimizer=isinstance(owner, Optimizer),
                set_to_none=to_none,
            )
        return original(*args, **kwargs)

    def around_scale(self, original: Any, args: Any, kwargs: Any) -> Any:
        """A gradient scaler scales a loss."""
        result = original(*args, **kwargs)
        with self._recorder.work():
            if args[0].is_enabled():
                self._scale, self._scaled = float(args[0].get_scale()), True
        return result

    def around_unscale(self, original: Any, args: Any, kwargs: Any) -> Any:
        """It unscales the gradients of an optimizer, or its round is over."""
        result = original(*args, **kwargs)
        self._scaled = False
        return result

    def around_clip(self, original: Any, args: Any, kwargs: Any) -> Any:
        """Gradients are clipped."""
        given = args[0] if args else kwargs.get("parameters")
        if isinstance(given, Iterator):  # a generator can be walked once, and that is the user's
            given = list(cast("Iterator[Tensor]", given))
            args, kwargs = ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "parameters": given})
        recorder = self._recorder
        with recorder.work():
            tensors = [given] if isinstance(given, Tensor) else list(cast("Iterable[Tensor]", given or []))
            with_grad = [t for t in tensors if t.grad is not None]
            owned = recorder.owned()
            unowned = tuple(recorder.place_of(t) for t in with_grad if id(t) not in owned) if owned else ()
            recorder.add(Clip, tensors=len(with_grad), unowned=unowned, scale=self._scale if self._scaled else 1.0)
        return original(*args, **kwargs)


def _is_nested(optimizer: Optimizer) -> bool:
    """Whether this is a step inside of the same optimizer's step: a class of the user's that calls ``super().step()``.

    torch calls its hooks around both. What an earlier step left behind cannot tell, since that may have raised.
    """
    wrappers = [
        f for f in frames(sys._getframe(1)) if f.f_code.co_name == "wrapper" and f.f_code.co_filename == _HOOKED
    ]
    return sum(variables(frame).get("self") is optimizer for frame in wrappers) > 1


_HOOKED = Optimizer.profile_hook_step.__code__.co_filename


def _norm(grads: list[Tensor]) -> float:
    with torch.no_grad():
        return math.sqrt(sum(float(g.detach().double().square().sum()) for g in grads if not g.is_sparse))
