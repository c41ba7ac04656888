"""Listens to what is put around a model: data parallelism, sharding, compilation, functional calls, averaging."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from frostline.audit.events import FunctionalCall, UpdateBN, Wrapped
from frostline.audit.model_watch import ModelWatch
from frostline.audit.places import Place
from frostline.audit.recorder import Recorder
from frostline.audit.rows import pointer_of
from frostline.state import names

_SWITCHES = ("broadcast_buffers", "find_unused_parameters", "static_graph")


class WrapperListener:
    """Hears wrappers and functional calls."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def around_wrap(self, original: Any, args: Any, kwargs: Any) -> Any:
        """A model is wrapped for data-parallel training."""
        result = original(*args, **kwargs)
        recorder = self._recorder
        with recorder.work():
            inner = args[1] if len(args) > 1 else kwargs.get("module")
            watch = recorder.discover(args[0])
            if watch is not None and isinstance(inner, nn.Module):
                note_wrapper(recorder, watch, args[0], inner)
        return result

    def around_shard(self, original: Any, args: Any, kwargs: Any) -> Any:
        """The parameters of a module are sharded (FSDP)."""
        recorder = self._recorder
        with recorder.work():
            modules = args[1] if len(args) > 1 else kwargs.get("module", kwargs.get("modules"))
            first = modules[0] if isinstance(modules, (list, tuple)) else modules
            if isinstance(first, nn.Module):
                watch = recorder.discover(first)
                if watch is not None:
                    shards = type(args[0]).__name__ == "FSDPState"
                    self._note(watch, "fully_shard" if shards else type(args[0]).__name__, {})
        return original(*args, **kwargs)

    def around_compile(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``torch.compile`` or ``module.compile``."""
        recorder = self._recorder
        with recorder.work():
            model = args[0] if args else kwargs.get("model")
            if isinstance(model, nn.Module):
                watch = recorder.discover(model)
                if watch is not None:
                    watch.compiled = True
                    recorder.add(Wrapped, model=watch.name, wrapper="compile", trainable=_trainable(watch))
        return original(*args, **kwargs)

    def _note(self, watch: ModelWatch, wrapper: str, settings: dict[str, bool]) -> None:
        self._recorder.add(Wrapped, model=watch.name, wrapper=wrapper, trainable=_trainable(watch), settings=settings)

    def around_functional_call(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``torch.func.functional_call``."""
        recorder = self._recorder
        module: nn.Module = args[0]
        with recorder.work():
            given = args[1] if len(args) > 1 else {}
            parts = given if isinstance(given, (tuple, list)) else [given]
            values = {key: value for part in parts for key, value in part.items()}
            mine = {pointer_of(t) for t in [*module.parameters(), *module.buffers()]}
            left = [
                names.join(path, name)
                for path, inner in module.named_modules()
                if inner.training and inner._buffers.get("running_mean") is not None
                for name, buffer in inner._buffers.items()
                if buffer is not None and names.join(path, name) not in values
            ]
            recorder.discover(module)
            recorder.add_pending(
                FunctionalCall,
                module,
                replaced=len(values),
                buffers_left=tuple(left),
                training=module.training,
                grad=torch.is_grad_enabled(),
                own=all(pointer_of(value) in mine for value in values.values()),
            )
        recorder.in_functional += 1
        try:
            return original(*args, **kwargs)
        finally:
            recorder.in_functional -= 1

    def around_update_bn(self, original: Any, args: Any, kwargs: Any) -> Any:
        """``update_bn``."""
        recorder = self._recorder
        with recorder.work():
            model = args[1] if len(args) > 1 else kwargs.get("model")
            if isinstance(model, nn.Module):
                recorder.discover(model)
                recorder.add(UpdateBN, model=recorder.place_of(names.unwrap(model))[0])
        return original(*args, **kwargs)

    def around_warning(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Python shows a warning."""
        if args and len(self._recorder.warnings) < 50:
            self._recorder.warnings.append(str(args[0]))
        return original(*args, **kwargs)


def note_wrapper(
    recorder: Recorder, watch: ModelWatch, wrapper: nn.Module, inner: nn.Module, place: Place | None = None
) -> None:
    """Take down a wrapper for data-parallel training: when it is made, or when one from before the watch runs."""
    watch.wrapper = type(wrapper).__name__
    watch.wrapped = {path: (weakref.ref(t), pointer_of(t)) for path, t in inner.named_parameters()}
    settings = {name: bool(getattr(wrapper, name)) for name in _SWITCHES if hasattr(wrapper, name)}
    recorder.add(
        Wrapped, place=place, model=watch.name, wrapper=watch.wrapper, trainable=_trainable(watch), settings=settings
    )


def _trainable(watch: ModelWatch) -> tuple[str, ...]:
    return tuple(row.path for row in watch.parameter_rows if row.tensor.requires_grad)
