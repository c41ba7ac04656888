"""The places where torch is listened to while a loop is watched, and how all of them are put back.

Methods of a few classes are replaced for as long as the watch lasts; where torch has process-wide hooks (optimizer
steps, registrations) these are used. No instance is touched, so that copies, pickles and state dicts of models and
optimizers are what they would have been. A tap that something else still holds on to afterwards passes calls on.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.utils import clip_grad, stateless
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from frostline.audit.hear_files import FileListener
from frostline.audit.hear_forwards import ForwardListener
from frostline.audit.hear_modes import ModeListener
from frostline.audit.hear_optimizers import OptimizerListener
from frostline.audit.hear_steps import StepListener
from frostline.audit.hear_wrappers import WrapperListener
from frostline.audit.places import kind_of
from frostline.audit.recorder import Recorder
from frostline.audit.trace_window import TraceWindow

_LISTENING: weakref.WeakSet[Taps] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A forked data loader is no part of the loop: what it does is not recorded."""
    for taps in list(_LISTENING):
        taps._recorder.live = False


os.register_at_fork(after_in_child=_leave_to_the_parent)


class Taps:
    """All taps of one watch, and the listeners behind them."""

    def __init__(self, recorder: Recorder, after_step: Callable[[int], None] | None = None) -> None:
        self._recorder = recorder
        self._quiet = False
        self.window = TraceWindow(recorder)
        self.files = FileListener(recorder)
        self._forwards = ForwardListener(recorder, self.window, self._set_quiet)
        self._modes = ModeListener(recorder)
        self._steps = StepListener(recorder, after_step)
        self._optimizers = OptimizerListener(recorder)
        self._wrappers = WrapperListener(recorder)
        self._thread = threading.get_ident()
        self._undo: list[Callable[[], None]] = []
        self._depth: dict[str, int] = {}

    def install(self) -> None:
        """Listen."""
        self._recorder.live = True
        _LISTENING.add(self)
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Put everything back, the last first."""
        self._recorder.live = False
        while self._undo:
            self._undo.pop()()

    def _set_quiet(self, quiet: bool) -> None:
        self._quiet = quiet

    def _install(self) -> None:
        modes, steps, optimizers, files, wrappers = (
            self._modes,
            self._steps,
            self._optimizers,
            self.files,
            self._wrappers,
        )
        self._put(nn.Module, "__call__", self._calls)
        self._put(Tensor, "requires_grad", self._flag)
        self._put(Tensor, "requires_grad_", self._flag_method)
        for name in ("parameters", "named_parameters", "modules", "named_modules", "children", "named_children"):
            self._put(nn.Module, name, functools.partial(self._walk, name))
        around: list[tuple[Any, str, Callable[..., Any]]] = [
            (nn.Module, "train", modes.around_mode),
            (nn.Module, "state_dict", files.around_state_dict),
            (nn.Module, "load_state_dict", files.around_load),
            (nn.Module, "zero_grad", steps.around_zero_grad),
            (nn.Module, "compile", wrappers.around_compile),
            (torch, "compile", wrappers.around_compile),
            (torch, "save", files.around_save),
            (safetensors, "save_file", files.around_save),
            (torch.autograd, "backward", steps.around_backward),
            (Optimizer, "__init__", optimizers.around_made),
            (Optimizer, "add_param_group", optimizers.around_group_added),
            (Optimizer, "zero_grad", steps.around_zero_grad),
            (Optimizer, "load_state_dict", optimizers.around_load),
            (Optimizer, "state_dict", files.around_other_state("optimizer")),
            (torch.amp.GradScaler, "scale", steps.around_scale),
            (torch.amp.GradScaler, "unscale_", steps.around_unscale),
            (torch.amp.GradScaler, "update", steps.around_unscale),
            (torch.amp.GradScaler, "load_state_dict", optimizers.around_scheduler_load),
            (torch.amp.GradScaler, "state_dict", files.around_other_state("scaler")),
            (torch.nn.utils, "clip_grad_value_", steps.around_clip),
            (stateless, "_functional_call", wrappers.around_functional_call),
            (swa_utils, "update_bn", wrappers.around_update_bn),
            (nn.parallel.DistributedDataParallel, "__init__", wrappers.around_wrap),
            (nn.DataParallel, "__init__", wrappers.around_wrap),
            (warnings, "showwarning", wrappers.around_warning),
        ]
        if hasattr(clip_grad, "_clip_grads_with_norm_"):  # what a name that was imported before still calls
            around.append((clip_grad, "_clip_grads_with_norm_", steps.around_clip))
        else:
            around.append((torch.nn.utils, "clip_grad_norm_", steps.around_clip))
        for owner, name, listener in around:
            self._around(owner, name, listener)
        for owner, name in _sharding():
            self._around(owner, name, wrappers.around_shard)
        for scheduler in _own(lr_scheduler, lr_scheduler.LRScheduler):
            for name, listener in (
                ("__init__", optimizers.around_scheduler_made),
                ("step", optimizers.around_scheduler_step),
                ("load_state_dict", optimizers.around_scheduler_load),
                ("state_dict", files.around_other_state("scheduler")),
            ):
                if name in vars(scheduler):
                    self._around(scheduler, name, listener, family=f"scheduler.{name}")
        for handle in (
            register_optimizer_step_pre_hook(self._heard(steps.before_step)),
            register_optimizer_step_post_hook(self._heard(steps.after_step)),
            module_hooks.register_module_parameter_registration_hook(self._heard(modes.on_parameter)),
            module_hooks.register_module_buffer_registration_hook(self._heard(modes.on_buffer)),
            module_hooks.register_module_module_registration_hook(self._heard(modes.on_module)),
        ):
            self._undo.append(handle.remove)

    def hears(self) -> bool:
        """Whether this call is to be recorded: by the thread that watches, and not while torch traces a graph."""
        return (
            self._recorder.live and threading.get_ident() == self._thread and not torch.compiler.is_dynamo_compiling()
        )

    def _put(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        own = name in vars(owner)
        original = vars(owner)[name] if own else getattr(owner, name)
        tap = make(original)
        setattr(owner, name, tap)

        def undo() -> None:
            if vars(owner).get(name) is not tap:
                return  # somebody has put a patch on top of ours; it passes on to us, and we to the original
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

        self._undo.append(undo)

    def _around(self, owner: Any, name: str, around: Callable[..., Any], *, family: str = "") -> None:
        """A tap on a function or method of which the outermost call counts: what it calls itself is passed on."""
        key = family or f"{getattr(owner, '__name__', owner)}.{name}"

        def make(original: Any) -> Any:
            @functools.wraps(original)
            def tap(*args: Any, **kwargs: Any) -> Any:
                if not self.hears() or self._depth.get(key):
                    return original(*args, **kwargs)
                self._depth[key] = 1
                try:
                    return around(original, args, kwargs)
                finally:
                    self._depth[key] = 0

            return tap

        self._put(owner, name, make)

    def _heard(self, hook: Callable[..., Any]) -> Callable[..., None]:
        def heard(*args: Any) -> None:
            if self.hears():
                hook(*args)

        return heard

    def _calls(self, original: Any) -> Any:
        # Before anything else: a graph that is being traced must not come to depend on our state.
        tracing = torch.compiler.is_dynamo_compiling

        @functools.wraps(original)
        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it takes the place of one
            if tracing() or self._quiet or not self._recorder.live or threading.get_ident() != self._thread:
                return original(module, *args, **kwargs)
            return self._forwards.around_call(original, module, args, kwargs)

        return __call__

    def _walk(self, name: str, original: Any) -> Any:
        @functools.wraps(original)
        def walk(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.hears():
                frame = sys._getframe(1)
                if kind_of(frame.f_code.co_filename) == "user":
                    self._modes.on_walk(module, name, frame)
            return original(module, *args, **kwargs)

        return walk

    def _flag(self, original: Any) -> Any:
        def write(tensor: Tensor, value: bool) -> None:
            if type(tensor) is Tensor or not self.hears():
                original.__set__(tensor, value)
                return
            before = original.__get__(tensor)
            original.__set__(tensor, value)
            self._modes.on_grad_flag(tensor, value, before)

        # The reading side stays in C.
        return property(original.__get__, write)

    def _flag_method(self, original: Any) -> Any:
        @functools.wraps(original)
        def requires_grad_(tensor: Tensor, requires_grad: bool = True) -> Tensor:
            if type(tensor) is Tensor or not self.hears():
                return cast("Tensor", original(tensor, requires_grad))
            before = tensor.requires_grad
            result = cast("Tensor", original(tensor, requires_grad))
            self._modes.on_grad_flag(tensor, requires_grad, before)
            return result

        return requires_grad_


def _own(room: Any, base: type) -> list[type]:
    return [value for value in vars(room).values() if isinstance(value, type) and issubclass(value, base)]


def _sharding() -> list[tuple[Any, str]]:
    """Where FSDP takes a module's parameters, as far as it is loaded; loading it takes seconds."""
    found: list[tuple[Any, str]] = []
    states = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_state")
    if states is not None and hasattr(states, "FSDPState"):
        found.append((states.FSDPState, "init"))
    older = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if older is not None:
        found.append((older.FullyShardedDataParallel, "__init__"))
    return found
