"""The step that is looked at operator by operator, after something moved that must stay."""

from __future__ import annotations

from frostline.audit import tracing
from frostline.audit.marks import marks
from frostline.audit.model_watch import ModelWatch
from frostline.audit.recorder import Recorder
from frostline.audit.seen import Write


class TraceWindow:
    """Opens at the forward pass after a contradiction and closes at the next one; once for each model."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._open: tuple[ModelWatch, tracing.WriteTrace, dict[str, str]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether a step is being looked at."""
        return self._open is not None

    def open(self, watch: ModelWatch) -> None:
        """Begin, unless this model was looked at already, or what is computed would not stay the same."""
        recorder = self._recorder
        if watch.traced or not recorder.trace or self._open is not None:
            return
        watch.traced = True
        watch.trace_refused = tracing.refusal(compiled=recorder.is_compiled(watch))
        if watch.trace_refused:
            return
        tensors = {path: watch.rows[path].tensor for path in watch.wants_trace if path in watch.rows}
        before = marks(tensors)
        mode = tracing.WriteTrace(
            tensors,
            in_optimizer=lambda: recorder.in_step is not None,
            forward_place=lambda: recorder.forward_place,
        )
        mode.__enter__()
        self._open = watch, mode, before

    def close(self, of: ModelWatch | None = None) -> None:
        """End it, if it is open (and of this model), and enter the writes."""
        if self._open is None or (of is not None and self._open[0] is not of):
            return
        watch, mode, before = self._open
        self._open = None
        mode.__exit__(None, None, None)
        for write in mode.found:
            if write.path in watch.rows:
                watch.rows[write.path].writes.append(write)
        wrote = {write.path for write in mode.found}
        after = marks({path: watch.rows[path].tensor for path in before if path in watch.rows})
        for path, mark in after.items():
            if path not in wrote and mark != before[path]:
                watch.rows[path].writes.append(Write(path, "", outside=True))
