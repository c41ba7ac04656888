"""Listens to what is set: modes, ``requires_grad``, and parameters, buffers and modules that are put into a module."""

from __future__ import annotations

import weakref
from types import FrameType
from typing import Any

from torch import Tensor, nn

from frostline.audit.discovery import inner_of
from frostline.audit.events import GradFlag, ModeCall, Registration
from frostline.audit.marks import marks
from frostline.audit.module_facts import settings_now
from frostline.audit.places import Place
from frostline.audit.recorder import Recorder
from frostline.audit.rows import pointer_of, version_of

# Above so many parameters a switch of modes is not checked for changing values: it would take longer than the switch.
_MOST_PARAMETERS = 20_000
_MOST_WALKS = 2000


class ModeListener:
    """Hears ``train()``, ``eval()``, ``requires_grad`` and registrations."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._froze = False

    def around_mode(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``train()`` and ``eval()``."""
        recorder = self._recorder
        module: nn.Module = args[0]
        mode = bool(kwargs.get("mode", args[1] if len(args) > 1 else True))
        modules: list[nn.Module] = []
        before: list[bool] = []
        state: list[tuple[Tensor, tuple[object, ...]]] = []
        with recorder.work():
            modules = list(module.modules())
            before = [m.training for m in modules]
            parameters = [p for m in modules for p in m._parameters.values() if p is not None]
            adapters = {id(p) for m in modules if "merged" in m.__dict__ for p in m._parameters.values()}
            state = [(p, _mark(p, by_value=id(p) in adapters)) for p in parameters[:_MOST_PARAMETERS]]
            watch = recorder.watch_of(module)
            if watch is not None and not mode and watch.model.training:
                watch.settings_before = settings_now(watch.modules)
        result = original(*args, **kwargs)
        with recorder.work():
            module = inner_of(module)
            watch = recorder.watch_of(module)
            if mode:
                recorder.put_into_eval.pop(id(module), None)
            else:
                recorder.put_into_eval[id(module)] = weakref.ref(module)
            items: dict[str, list[Any]] = {
                "flipped": [m for m, was in zip(modules, before, strict=True) if m.training != was],
                "guarded": [m for m in modules if m.training != mode],
                "changed": [p for p, was in state if _mark(p, by_value=len(was) > 2) != was],
            }
            recorder.add_pending(ModeCall, module, items, mode=mode)
            if watch is not None:
                watch.flags = [m.training for m in watch.modules.values()]
        return result

    def on_walk(self, module: nn.Module, method: str, frame: FrameType) -> None:
        """A line of the user's asks a module for its parameters or modules."""
        recorder, file = self._recorder, frame.f_code.co_filename
        key = (id(module), method, file, frame.f_lineno)
        if key not in recorder.walks and len(recorder.walks) < _MOST_WALKS:
            recorder.walks[key] = weakref.ref(module), Place(file, frame.f_lineno, frame.f_code.co_name)
            recorder.sources.setdefault(file)

    def on_grad_flag(self, tensor: Tensor, value: bool, before: bool) -> None:
        """``requires_grad`` was written."""
        if isinstance(tensor, nn.Parameter):
            with self._recorder.work():
                recorder = self._recorder
                self._froze = self._froze or not value
                watch = recorder.watch_of(tensor) if value != before else None
                if watch is not None:
                    watch.unsettle(recorder.steps)
                grad = tensor.grad if before and not value else None
                left = None if grad is None else _is_left(grad)
                recorder.add_pending(GradFlag, tensor, value=bool(value), before=before, left=left)

    def on_parameter(self, module: nn.Module, name: str, value: Any) -> None:
        """A parameter is put into a module."""
        self._registered(module, name, value, "parameter", module._parameters.get(name))

    def on_buffer(self, module: nn.Module, name: str, value: Any) -> None:
        """A buffer is."""
        self._registered(module, name, value, "buffer", module._buffers.get(name))

    def on_module(self, module: nn.Module, name: str, value: Any) -> None:
        """A module is."""
        self._registered(module, name, value, "module", module._modules.get(name))

    def _registered(self, module: nn.Module, name: str, value: Any, kind: str, before: Any) -> None:
        # Before anything was frozen, building a model is not worth a note; neither is what a functional call swaps.
        if value is None or value is before or self._recorder.in_functional or not (before is not None or self._froze):
            return
        with self._recorder.work():
            old = _parameters(before)
            for path, parameter in old:
                below = f"{name}.{path}" if path else name
                self._recorder.replaced.append((weakref.ref(parameter), weakref.ref(module), below))
            if type(value).__name__ == "DTensor" or any(type(p).__name__ == "DTensor" for _, p in _parameters(value)):
                return  # sharding puts the same parameter in its own place
            around = list(module.parameters())
            self._recorder.add_pending(
                Registration,
                module,
                below=name,
                kind=kind,
                replaced=before is not None,
                frozen_before=bool(old) and not any(p.requires_grad for _, p in old),
                trainable=any(p.requires_grad for _, p in _parameters(value)),
                frozen_around=bool(around) and not any(p.requires_grad for p in around),
            )


def _is_left(grad: Tensor) -> bool:
    """Whether a gradient is other than zero; of a sharded one this process asks its own share."""
    grad = getattr(grad, "_local_tensor", grad).detach()
    return bool((grad._values() if grad.is_sparse else grad).any())


def _parameters(value: Any) -> list[tuple[str, nn.Parameter]]:
    if isinstance(value, nn.Parameter):
        return [("", value)]
    return list(value.named_parameters()) if isinstance(value, nn.Module) else []


def _mark(tensor: Tensor, *, by_value: bool) -> tuple[object, ...]:
    """Adapters merge through ``.data``, which no version shows: of theirs the values count."""
    known = version_of(tensor), pointer_of(tensor)
    return (*known, marks({"": tensor})[""]) if by_value else known
