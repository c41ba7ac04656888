"""Watches which front layers have stopped changing, and freezes them when asked, or by itself.

A frozen front needs no backward pass, and its activations can be kept; what is in the middle of training does not. So
what matters is the deepest layer up to which *everything* has come to rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from frostline.errors import ModelError, name_some
from frostline.fast.convergence import (
    FROZEN,
    SCHEMA_VERSION,
    ConvergenceReport,
    ConvergenceRow,
    History,
    Move,
    Rule,
)
from frostline.fast.front_hold import FrontHold
from frostline.fast.front_layers import front_layers
from frostline.fast.layer_watch import LayerWatch
from frostline.fast.watchable import check_setting, refuse_missing, refuse_parallel, the_stepping_one
from frostline.freezing.hold import Hold
from frostline.optim.depth import By
from frostline.state import names
from frostline.state.selection import Selector


class Converged:
    """Watches the layers of a model while it trains, and freezes the front ones that have converged.

    Steps are seen by hooks on the optimizer, so gradients may be accumulated, scaled or made by a closure; a step that
    a gradient scaler skips does not count. A window is an epoch, told by :meth:`epoch_end`, or a number of steps. In
    each window two figures are taken of each layer in front of the head:

    - its *update*: how far its weights are from where the window began, as a part of their norm. Of the layer as a
      whole, or of the matrix or kernel in it that went farthest, whichever is more;
    - its *relative gradient*: the root mean square, over the steps, of the norm of its gradient, over the same of the
      window before; and that over the median of the same for all layers, because hard samples or a larger loss make
      all gradients grow.

    A layer is *steady* in a window if its update is at most ``tolerance`` times the median over the layers of the
    largest update that each has had (or at most ``rest``), and its relative gradient at most ``1 + growth``. It
    has *converged* if it was steady in the last ``patience`` windows. Not steady, whatever it does, is a layer in its
    first window; one whose learning rate is 0 or higher than in the window before, so that a warm-up is not taken for
    rest; one that had no gradient; and one where something is not finite. Proposed is the deepest layer up to which
    every layer has converged or is frozen anyway, and that shares no tensor with one behind it. The head is never
    frozen.

    This differs from AutoFreeze, which freezes layers whose change of the gradient's norm from interval to interval,
    ``||D(T)| - |D(T-1)|| / |D(T-1)|``, is below a percentile over the layers: that is small for a layer that goes on
    moving at constant speed, large for one whose gradient fades, and below a median for half of the layers always. Here
    weights have to rest, and only a gradient that grows counts against a layer. It differs from Egeria, which compares
    activations with those of a quantized copy: here no second model runs. From Egeria comes that a drop of the learning
    rate thaws what is frozen. The factor of ``retry_on_lr_drop`` is taken from one window to the next: a cosine or
    linear schedule drops by at most 4 that way, even at its end, and thaws nothing; a step by 10 does.

    A frozen part is held at level ``"state"``: its batch norms go to eval mode too, so from then on they normalize by
    their running statistics, not by the batch, which can make the loss jump a little. Without that its activations
    would depend on the batch and could not be kept.

    Memory: one copy of the trainable weights in front of the head, from the first step of a window to its end; what is
    frozen needs none. Nothing of the model changes until something is frozen.

    Args:
        model: the model.
        optimizer: what trains it, or a wrapper of it. It has to hold every trainable parameter in front of the head.
        window: steps of a window; ``None`` is an epoch.
        tolerance: of the update, as a part of what is usual.
        rest: an update that counts as none.
        growth: of the relative gradient, above 1.
        patience: windows in a row.
        by: how depth is told; see :func:`~frostline.optim.depth.depth_of`.
        head: selectors of the head; by default the model's classifier, and where it has none, its deepest layer.
        act: whether :meth:`epoch_end` freezes what it proposes, and takes back when the rate has dropped.
        on_freeze: called with the :class:`~frostline.fast.convergence.Move` after each freeze and each taking back.
        retry_on_lr_drop: the factor; ``None`` never takes back.

    Raises:
        NothingSelected: a selector matches nothing.
        SelectionError: layers overlap or leave parameters out.
        ModelError: a setting makes no sense; nothing comes before the head; the optimizer lacks a trainable parameter,
            calls no hooks, or is LBFGS, which moves all parameters as one vector; or the model is wrapped for training
            on several devices, which would wait for gradients of what is frozen later.

    Source: Liu et al. 2021, AutoFreeze (arXiv:2102.01386); Wang et al. 2023, Egeria (EuroSys).

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 1e-9},
        ...                              {"params": model[1].parameters(), "lr": 1e-2}])
        >>> watcher = Converged(model, optimizer, head="1")
        >>> for epoch in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 2)).square().mean().backward()
        ...     optimizer.step()
        ...     report = watcher.epoch_end()
        >>> report.proposal, watcher.freeze().level, model[0].weight.requires_grad
        ('0', 'state', False)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        window: int | None = None,
        tolerance: float = 0.2,
        rest: float = 1e-3,
        growth: float = 0.25,
        patience: int = 2,
        by: By = "auto",
        head: Selector | Sequence[Selector] | None = None,
        act: bool = False,
        on_freeze: Callable[[Move], object] | None = None,
        retry_on_lr_drop: float | None = 5.0,
    ) -> None:
        check_setting("window", window, window is None or window >= 1, "a number of steps, or None for an epoch")
        check_setting("tolerance", tolerance, 0 <= tolerance < 1, "a part, from 0 to less than 1")
        check_setting("rest", rest, 0 <= rest < 1, "a part, from 0 to less than 1")
        check_setting("growth", growth, growth >= 0, "0 or more")
        check_setting("patience", patience, patience >= 1, "1 window or more")
        allowed = retry_on_lr_drop is None or retry_on_lr_drop > 1
        check_setting("retry_on_lr_drop", retry_on_lr_drop, allowed, "a factor above 1, or None")
        refuse_parallel(model)
        self._model = names.unwrap(model)
        self._optimizer = the_stepping_one(optimizer)
        self._layers = front_layers(self._model, by=by, head=head)
        refuse_missing(self._layers.trainable(self._model), self._optimizer)
        self._front = FrontHold(self._model, self._optimizer, self._layers)
        self._window_steps, self._patience = window, patience
        self._act, self._on_freeze, self._retry = act, on_freeze, retry_on_lr_drop
        rule = Rule(tolerance, rest, growth, patience)
        self._watch = LayerWatch(self._model, self._optimizer, self._layers, rule, window)

    @property
    def frozen(self) -> list[str]:
        """The titles of the layers that the watcher has frozen, from the input on."""
        return [layer.title for layer in self._layers.layers[: self._front.count]]

    @property
    def hold(self) -> Hold | None:
        """The hold on what the watcher has frozen; ``None`` while that is nothing."""
        return self._front.hold if self._front.count else None

    @property
    def nbytes(self) -> int:
        """What the copies of the running window take."""
        return self._watch.nbytes

    def look(self) -> ConvergenceReport:
        """Say how things stand after the last window that is over; nothing is changed."""
        return self._report(None)

    def epoch_end(self) -> ConvergenceReport:
        """Say how things stand; where windows are epochs, the window is over. Where the watcher acts, it does so now.

        Call it between two steps. An epoch without a step is none.

        Returns:
            The :class:`~frostline.fast.convergence.ConvergenceReport`; its ``move`` says what was done.

        Raises:
            CannotFreeze: what has converged cannot be held.
        """
        if self._window_steps is None:
            self._watch.end_window()
        count = self._proposed()
        move = None
        if self._act and self._rate_dropped():
            move = self._move_to(0, "the learning rate has dropped")
            # What is usual was so at another rate.
            self._watch.histories = [History() for _ in self._layers.layers]
        elif self._act and count:
            move = self._move_to(count, "converged")
        if move is not None:
            self._tell(move)
        return self._report(move)

    def freeze(self) -> Hold:
        """Freeze what is proposed.

        Returns:
            The hold on all that the watcher has frozen, earlier layers included; an earlier hold is released.

        Raises:
            ModelError: nothing is proposed.
            CannotFreeze: it cannot be held.

        Warns:
            TiedAcrossBoundary: a buffer of it is also used behind.
        """
        count = self._proposed()
        if not count:
            raise ModelError(
                f"freeze: no front layer more has converged\n{self.look()}\n  fix: look().proposal says when"
            )
        self._tell(self._move_to(count, "converged"))
        assert self.hold is not None, "something is frozen now"
        return self.hold

    def take_back(self, layer: int | str | None = None) -> Move | None:
        """Thaw what the watcher has frozen, from a layer on; these layers begin anew.

        They get back ``requires_grad``, and the mode that the model is in. Their optimizer state is what it was when
        they were frozen.

        Args:
            layer: its depth or title; ``None`` is all of them. Where tensors are shared with earlier layers, these are
                thawed too.

        Returns:
            What was done; ``None`` if nothing was frozen.

        Raises:
            ModelError: there is no such layer, or the watcher has not frozen it.
        """
        count = 0 if layer is None else self._layers.find(layer)
        if not self.frozen:
            return None
        if count >= len(self.frozen):
            raise ModelError(
                f"take_back({layer!r}): it is not frozen\n  found: {name_some(self.frozen)} frozen\n  fix: one of these"
            )
        while count and not self._layers.may_end_behind(count):
            count -= 1
        return self._tell(self._move_to(count, "taken back"))

    def detach(self) -> None:
        """Take the hooks off the optimizer. What is frozen stays frozen; ``hold.thaw()`` releases it."""
        self._watch.detach()

    def __enter__(self) -> Converged:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Take the hooks off; what is frozen is verified and thawed.

        On an exception nothing is verified, so that it is the one that is seen.

        Raises:
            FrozenStateMoved: something moved that was frozen.
        """
        self.detach()
        try:
            if self.hold is not None and kind is None:
                self.hold.verify()
        finally:
            self._front.hold_first(0)

    def state_dict(self) -> dict[str, Any]:
        """Where the watcher stands, as JSON-ready values.

        The window that is running is not in it, because it would need the weights: save behind :meth:`epoch_end`.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "layers": [list(layer.parameters) for layer in self._layers.layers],
            "window": self._window_steps,
            "frozen": self._front.count,
            **self._watch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another one stood: freezes what it had frozen. ``on_freeze`` is not called.

        Load the model first: what is frozen is verified from now on against what it is now.

        Raises:
            ModelError: the state is of another version, of other layers or windows, or of a time before what is frozen
                was frozen.
        """
        if state.get("schema_version") != SCHEMA_VERSION:
            raise ModelError(
                f"the state is of version {state.get('schema_version')!r}, this one reads {SCHEMA_VERSION}\n"
                "  fix: the version of Frostline that wrote it"
            )
        for name in ("layers", "window"):
            if state[name] != self.state_dict()[name]:
                raise ModelError(
                    f"the state is of a watcher with another {name!r}\n"
                    f"  asked: {_short(state[name])}\n  found: {_short(self.state_dict()[name])} here\n"
                    "  fix: the model, by=, head= and window= that the run began with"
                )
        if state["frozen"] < self._front.count:
            raise ModelError(
                f"the state is from before {self.frozen[-1]} was frozen\n"
                "  fix: load it into a watcher that has just been made"
            )
        if state["frozen"]:
            self._front.hold_first(state["frozen"])
        self._watch.load_state_dict(state)

    def _proposed(self) -> int:
        """How many layers could be frozen; 0 if not more than are."""
        training = self._layers.trainable(self._model)
        found = 0
        for layer, history in zip(self._layers.layers, self._watch.histories, strict=True):
            if layer.depth in training:
                if history.steady < self._patience:
                    break
                # What is frozen anyway and comes behind the last that has converged gains nothing.
                found = layer.depth + 1
        while found and not self._layers.may_end_behind(found):
            found -= 1
        return found if any(depth < found for depth in training) else 0

    def _move_to(self, count: int, why: str) -> Move:
        before = self._front.count
        self._front.hold_first(count)
        self._watch.settle()
        for number in range(min(count, before), max(count, before)):
            # How far they went goes on to say what is usual; whatever else was seen of them is of another time.
            self._watch.histories[number] = History(peak=self._watch.histories[number].peak if count > before else None)
        return Move(before, count, tuple(self.frozen), tuple(self._front.parts), why)

    def _rate_dropped(self) -> bool:
        return bool(self._front.count and self._retry and self._watch.drop >= self._retry)

    def _tell(self, move: Move) -> Move:
        if self._on_freeze is not None:
            self._on_freeze(move)
        return move

    def _report(self, move: Move | None) -> ConvergenceReport:
        training = self._layers.trainable(self._model)
        rows = tuple(
            ConvergenceRow(layer.title, layer.depth, known.relative_gradient, known.update, known.steady, known.verdict)
            if layer.depth in training
            else ConvergenceRow(layer.title, layer.depth, None, None, 0, FROZEN)
            for layer, known in zip(self._layers.layers, self._watch.histories, strict=True)
        )
        count = self._proposed()
        return ConvergenceReport(
            rows,
            self._layers.layers[count - 1].title if count else None,
            self._front.count,
            self._watch.windows,
            self._watch.steps,
            self._watch.bar,
            self._rate_dropped(),
            move,
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
