"""Sees the steps of an optimizer, ends windows, and keeps for each layer what the rule needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.fast.convergence import History, Rule, restored, saved
from frostline.fast.front_layers import FrontLayers
from frostline.fast.layer_motion import Window


class LayerWatch:
    """Hooks on an optimizer; nothing of the model or the optimizer is changed.

    Args:
        model: the model, without wrappers.
        optimizer: what trains it.
        layers: its layers.
        rule: when a layer is steady.
        window_steps: after how many steps a window ends by itself; ``None`` leaves that to :meth:`end_window`.

    Attributes:
        histories: of each layer.
        windows: how many are over.
        steps: how many were seen.
        bar: the largest update that counted as at rest in the last window.
        drop: the largest factor by which all learning rates fell from one window to the next, since :meth:`settle`.

    Example:
        >>> import torch
        >>> from frostline.fast.front_layers import front_layers
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> rule = Rule(tolerance=0.2, rest=1e-3, growth=0.25, patience=2)
        >>> watch = LayerWatch(model, optimizer, front_layers(model, head="1"), rule, None)
        >>> model(torch.ones(1, 1)).sum().backward()
        >>> optimizer.step()
        >>> watch.end_window()
        >>> watch.steps, watch.windows, watch.histories[0].verdict
        (1, 1, 'first window')
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, layers: FrontLayers, rule: Rule, window_steps: int | None
    ) -> None:
        self.histories = [History() for _ in layers.layers]
        self.windows = self.steps = 0
        self.bar = rule.rest
        self.drop = 1.0
        self._model, self._optimizer, self._layers, self._rule = model, optimizer, layers, rule
        self._window_steps = window_steps
        self._rates: dict[int, float] = {}
        self._window: Window | None = None  # from the first step of a window on
        self._in_step = False
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def nbytes(self) -> int:
        """What the copies of the running window take."""
        return 0 if self._window is None else self._window.nbytes

    def end_window(self) -> None:
        """Take in what the layers did; a window without a step is none."""
        window, self._window = self._window, None
        if window is None or not window.steps:
            return
        now = self._layers.trainable(self._model)
        whole = {number for number in range(len(self.histories)) if window.covers(now, number)}
        for number, motion in window.close().items():
            if number in whole:
                self.histories[number].see(motion.gradient, motion.update, motion.rate)
        self.bar = self._rule.bar(self.histories)
        usual = self._rule.usual_growth([self.histories[number] for number in now if number in whole])
        for number, history in enumerate(self.histories):
            if number in now and number in whole:
                history.judge(self._rule, self.bar, usual)
            elif number not in whole:
                # Frozen or thawed by someone else within the window: what it did is not comparable.
                self.histories[number] = History()
        self.windows += 1
        # Group by group, because what was frozen in between may have had the highest rate.
        before, after = self._rates, window.rates
        falls = [before[index] / after[index] for index in before.keys() & after.keys() if after[index]]
        self.drop = max(self.drop, min(falls, default=1.0))
        self._rates = after

    def settle(self) -> None:
        """Other layers train from now on: the running window is given up, and drops of the rate are forgotten."""
        self._window = None
        self.drop = 1.0

    def detach(self) -> None:
        """Take the hooks off the optimizer, and drop the copies."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._window = None

    def state_dict(self) -> dict[str, Any]:
        """What was seen, as JSON-ready values; the running window is not in it."""
        return {
            "windows": self.windows,
            "steps": self.steps,
            "bar": self.bar,
            "rates": [[index, rate] for index, rate in self._rates.items()],
            "drop": self.drop,
            "histories": [saved(history) for history in self.histories],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, in a window of its own."""
        self.histories = [restored(each) for each in state["histories"]]
        self.windows, self.steps, self.bar = state["windows"], state["steps"], state["bar"]
        self._rates, self.drop = dict(state["rates"]), state["drop"]
        self._window = None

    def _before_step(self, _optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A class that calls the step of the class it is made from calls the hooks for each of them: it is one step.
        self._in_step = True
        if self._window is None:
            self._window = Window(self._layers.trainable(self._model), self._optimizer)
        if not _has_closure(args, kwargs):
            self._window.read()

    def _after_step(self, _optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._in_step or self._window is None:
            return
        self._in_step = False
        # A closure makes the gradients within the step.
        if _has_closure(args, kwargs):
            self._window.read()
        # Fused optimizers are called for a step that the gradient scaler skips, and skip it by themselves.
        infinite: Any = getattr(self._optimizer, "found_inf", None)
        if infinite is not None and infinite != 0:
            return
        self._window.keep()
        self.steps += 1
        if self._window.steps == self._window_steps:
            self.end_window()


def _has_closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return callable(args[1] if len(args) > 1 else kwargs.get("closure"))
