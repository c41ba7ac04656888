"""A learner that has adapted to one task."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class Predictor(Protocol):
    """What a learner has to say about queries, once it has seen the support set."""

    def __call__(self, inputs: Any, source: str) -> Tensor:
        """Scores of shape (N, way) for queries, normalized with the statistics of a source."""
        ...


class Seeded(Protocol):
    """Makes what is drawn inside depend on the task alone."""

    def __call__(self) -> AbstractContextManager[None]:
        """The context in which it does."""
        ...


class Adapted:
    """A learner after the support set of one task; it may be asked as often as wanted, also from several threads.

    What it is asked changes nothing: neither its weights and statistics, nor the model, nor what it says next.

    Attributes:
        losses: the loss on the support set before each inner step; empty for learners without steps.
        values: the parameters by path, the adapted ones in their last state, without a graph.
        scores: as :meth:`predict`, but random layers draw from the global generator.
    """

    def __init__(
        self, scores: Predictor, source: str, values: dict[str, Tensor], losses: list[float], seeded: Seeded
    ) -> None:
        self.scores = scores
        self._source = source
        self._seeded = seeded
        self._one_at_a_time = threading.Lock()
        self.values = values
        self.losses = losses

    def predict(self, inputs: Any, *, source: str | None = None) -> Tensor:
        """Scores for queries, shape (N, way), without a graph.

        Args:
            inputs: shape (N, ...).
            source: the statistics of the query pass; by default the policy's. See :data:`frostline.meta.SOURCES`.
        """
        with self._one_at_a_time, self._seeded():
            return self.scores(inputs, self._source if source is None else source)
