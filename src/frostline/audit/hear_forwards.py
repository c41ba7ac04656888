"""Listens to forward passes: which model, in which mode, with gradients or without, and what runs inside of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from frostline.audit import tracing
from frostline.audit.containers import walk
from frostline.audit.events import Forward, ModeCall
from frostline.audit.hear_wrappers import note_wrapper
from frostline.audit.model_watch import ModelWatch
from frostline.audit.module_facts import spectral_gaps
from frostline.audit.places import NOWHERE, Place, frames, in_stack, kind_of, variables
from frostline.audit.recorder import Recorder
from frostline.audit.seen import Draw, NormInput
from frostline.audit.trace_window import TraceWindow
from frostline.state import names

# So many passes of each kind (mode, gradients) are looked at module by module.
_CLOSE_LOOKS = 2
_MOST_BYPASSED = 50


class ForwardListener:
    """Hears the calls of modules; ``set_quiet`` says that the submodules of the one that runs need not be heard."""

    def __init__(self, recorder: Recorder, window: TraceWindow, set_quiet: Callable[[bool], None]) -> None:
        self._recorder = recorder
        self._window = window
        self._set_quiet = set_quiet
        self._depth = 0
        self._stack: list[nn.Module] = []
        self._runs: dict[int, list[int]] = {}
        self._outer_grad = True

    def around_call(self, original: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module is called: from outside of any other, or inside of one that is looked at closely."""
        if self._depth:
            return self._inner_call(original, module, args, kwargs)
        if self._recorder.due is not None:
            due, self._recorder.due = self._recorder.due, None
            due()
            # Taps may have gone or come: the call begins anew, through those that there are now.
            return nn.Module.__call__(module, *args, **kwargs)
        watch, mode, close = None, None, False
        with self._recorder.work():
            watch = self._recorder.discover(module)
            if watch is not None:
                mode, close = self._before(watch, module, args, kwargs)
        if watch is None:
            return original(module, *args, **kwargs)
        self._depth = 1
        self._set_quiet(not close)
        self._stack.append(module)
        try:
            if mode is None:
                return original(module, *args, **kwargs)
            with mode:
                return original(module, *args, **kwargs)
        finally:
            self._depth = 0
            self._set_quiet(False)
            self._stack.clear()
            if mode is not None:
                with self._recorder.work():
                    _note_draws(watch, mode)

    def _inner_call(self, original: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
        with self._recorder.work():
            runs = self._runs.setdefault(id(module), [0, 0, 0, 0])
            runs[3] += 1
            if torch.is_grad_enabled():
                runs[0] += 1
            elif self._outer_grad:
                runs[1] += 1
                runs[2] += in_stack("torch/utils/checkpoint.py")
            self._look_at_input(module, args)
        self._stack.append(module)
        try:
            return original(module, *args, **kwargs)
        finally:
            if self._stack and self._stack[-1] is module:
                self._stack.pop()

    def _before(
        self, watch: ModelWatch, module: nn.Module, args: Any, kwargs: Any
    ) -> tuple[tracing.DrawTrace | None, bool]:
        recorder = self._recorder
        inner = names.unwrap(module)
        if isinstance(module, nn.parallel.DistributedDataParallel) and not watch.wrapped:
            note_wrapper(recorder, watch, module, inner, NOWHERE)
        training, grad = inner.training, torch.is_grad_enabled()
        place = recorder.forward_place = recorder.place()
        path = watch.path_of(inner) or ""
        past_wrapper = watch.is_data_parallel and module is inner is watch.model
        watch.forwards += 1
        self._note_bypassed(watch)
        mode, close = None, False
        if not recorder.in_functional:
            self._note_flags(watch)
            if watch.contract_at is None:
                if training and grad:
                    recorder.take_contract(watch)
                else:
                    watch.take_baseline()
            watch.settle(recorder.owned(), recorder.steps)
            if grad:
                self._window.close(watch)
            # What runs compiled has no modules to look at, and must not be made to.
            close = watch.closely(training, grad, _CLOSE_LOOKS) and not watch.compiled
            self._runs, self._outer_grad = watch.runs, grad
            if close:
                self._look_at_input(module, args)
            watch.note_phase(path, training, grad, place, at=recorder.count, step=recorder.steps)
            if training and watch.wants_trace:
                self._window.open(watch)
            if not training and not watch.eval_traced and recorder.trace and not self._window.is_open:
                watch.eval_traced = True
                watch.sigma_gaps = spectral_gaps(watch.modules)
                refused = tracing.refusal(compiled=recorder.is_compiled(watch))
                if refused:
                    recorder.missed.setdefault(f"{watch.name} in eval mode was not looked at by operators: {refused}")
                else:
                    mode, close = tracing.DrawTrace(lambda: self._stack[-1] if self._stack else None), True
        self._note(watch, path, args, kwargs, place, training=training, grad=grad, past_wrapper=past_wrapper)
        return mode, close

    def _note(
        self,
        watch: ModelWatch,
        path: str,
        args: Any,
        kwargs: Any,
        place: Place,
        *,
        training: bool,
        grad: bool,
        past_wrapper: bool,
    ) -> None:
        recorder = self._recorder
        rows, shapes = _shapes(args, kwargs)
        recorder.add(
            Forward,
            place=place,
            model=watch.name,
            path=path,
            training=training,
            grad=grad,
            inference=torch.is_inference_mode_enabled(),
            rows=rows,
            shapes=shapes,
            past_wrapper=past_wrapper,
        )
        watch.waiting_forwards += grad
        for optimizer in recorder.optimizers:
            if grad and optimizer.owns_of(watch):
                optimizer.forwards += 1
                optimizer.rows.append(rows)
            elif not training and not grad and optimizer.has_modes and optimizer.owns_of(watch):
                optimizer.in_train_mode_at_eval.append(optimizer.train_mode)

    def _note_flags(self, watch: ModelWatch) -> None:
        """Modes that were written without ``train()`` or ``eval()``."""
        flags = [module.training for module in watch.modules.values()]
        if flags == watch.flags:
            return
        turned: dict[bool, list[str]] = {True: [], False: []}
        for path, before, now in zip(watch.modules, watch.flags, flags, strict=True):
            if before != now:
                turned[now].append(path)
        watch.flags = flags
        for mode, paths in turned.items():
            if paths:
                self._recorder.add(
                    ModeCall,
                    place=NOWHERE,
                    model=watch.name,
                    path=paths[0],
                    mode=mode,
                    flipped=tuple(paths),
                    direct=True,
                )

    def _note_bypassed(self, watch: ModelWatch) -> None:
        """A ``forward`` on the stack whose module is not being called: somebody called it directly."""
        if watch.forwards > _MOST_BYPASSED:
            return
        called_from = None
        for frame in frames(sys._getframe(1)):
            code = frame.f_code
            if called_from is not None:
                if kind_of(code.co_filename) == "user":
                    place = Place(code.co_filename, frame.f_lineno, code.co_name)
                    path = watch.path_of(called_from) or ""
                    if all(path != known for known, _ in watch.bypassed):
                        watch.bypassed.append((path, place))
                return
            if code.co_name == "forward" and code.co_varnames[:1] == ("self",):
                owner = variables(frame).get("self")
                if isinstance(owner, nn.Module) and watch.has(owner):
                    called_from = owner

    def _look_at_input(self, module: nn.Module, args: Any) -> None:
        """What arrives at the first normalization layer with running statistics."""
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not args or not isinstance(args[0], Tensor):
            return
        watch = self._recorder.watch_of(module)
        if watch is None or watch.norm_input is not None:
            return
        mean, var = module.running_mean, module.running_var
        if mean is None or var is None or not args[0].is_floating_point():
            return
        watch.norm_input = _norm_input(watch.path_of(module) or "", args[0], mean, var, module.num_batches_tracked)


def _note_draws(watch: ModelWatch, mode: tracing.DrawTrace) -> None:
    for draw in mode.found:
        path = watch.path_of(draw.module) or "" if draw.module is not None else ""
        training = bool(draw.module.training) if draw.module is not None else False
        watch.draws.append(Draw(path, draw.op, draw.what, training, draw.place))


def _shapes(args: Any, kwargs: Any) -> tuple[int, tuple[tuple[int, ...], ...]]:
    shapes: list[tuple[int, ...]] = []
    for value in walk([*args, *kwargs.values()], depth=3):
        if isinstance(value, Tensor):
            shapes.append(tuple(value.shape))
        if len(shapes) >= 8:
            break
    return (shapes[0][0] if shapes and shapes[0] else 0), tuple(shapes)


@torch.no_grad()
def _norm_input(path: str, value: Tensor, mean: Tensor, var: Tensor, count: Tensor | None) -> NormInput | None:
    value = value.detach().double()
    if value.dim() < 2 or not value.numel():
        return None
    over = [0, *range(2, value.dim())]
    own_mean, own_var = value.mean(over), value.var(over, unbiased=False)
    deviation = var.double().clamp_min(1e-12).sqrt()
    gap = ((own_mean - mean.double()).abs() / deviation).median()
    ratio = (own_var.sqrt() / deviation).median()
    fresh = bool((mean == 0).all()) and bool((var == 1).all())
    rows = value.numel() // value.shape[1]
    return NormInput(path, rows, float(gap), float(ratio), None if count is None else int(count), fresh)
