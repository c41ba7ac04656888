"""Which statistics batch norm uses while a model adapts to a task, and while it is judged: a value, not a mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.errors import PolicyError
from frostline.state.names import nearest

SOURCES: dict[str, str] = {
    "batch": "the batch that goes through the layer; for the query set this is transductive",
    "support": "the support set, passed through the network with the weights of that moment; inductive",
    "running": "one moving average over all passes of meta-training, as PyTorch's buffers keep it",
    "population": "mean and variance over the tasks of meta-training, for each inner step by itself",
    "frozen": "the model's own buffers as they are, which nothing updates: what net.eval() means",
    "per_step": "a moving average, and weight and bias, for each inner step by itself (MAML++ as it was meant)",
    "task_norm_l": "the support set blended with each sample's own moments over channels and space (TaskNorm-L)",
    "task_norm_i": "the support set blended with each sample's own moments over space (TaskNorm-I)",
    "instance": "each sample and channel by itself, over space",
    "layer": "each sample by itself, over channels and space",
    "reptile": "the support set and one query at a time, in one batch; inductive",
}
# What a name alone means for the inner steps, where that is not the same source.
_INNER = {"support": "batch", "reptile": "batch"}
TRANSDUCTIVE = frozenset({"batch"})
KEPT = frozenset({"running", "population", "per_step"})


@dataclass(frozen=True)
class Policy:
    """Which statistics every batch norm of a model uses in each inner step, and which in the query pass.

    A policy does not read the train or eval mode of a layer, and none of its sources writes to the model.

    Attributes:
        inner: a source of :data:`SOURCES` for each inner step; the last one is repeated for steps beyond. In an inner
            step the batch is the support set, so that ``batch`` and ``support`` mean the same there.
        query: the source for the query pass.

    Example:
        >>> Policy.of("support")
        Policy(inner=('batch',), query='support')
        >>> str(Policy.of("batch/population")), Policy.of("batch").transductive
        ('batch/population', True)
        >>> Policy(("batch", "batch", "running"), "running").inner_source(7)
        'running'
    """

    inner: tuple[str, ...]
    query: str

    def __post_init__(self) -> None:
        if not self.inner:
            raise PolicyError("a policy without a source for the inner steps\n  fix: name one, such as 'batch'")
        for source in (*self.inner, self.query):
            _check(source)
        for source in self.inner:
            if source == "reptile":
                raise PolicyError(
                    "the inner steps cannot normalize with 'reptile', the support set and one query at a time: they "
                    "see no query\n  fix: Policy(inner=('batch',), query='reptile')"
                )

    @staticmethod
    def of(policy: str | Policy | Sequence[str]) -> Policy:
        """The policy of a name, of ``"INNER/QUERY"``, or of a sequence with one source for each step and the query.

        Args:
            policy: a name of :data:`SOURCES` stands for both passes; ``support`` and ``reptile`` say what is special
                about the query pass, and leave the inner steps to ``batch``.

        Raises:
            PolicyError: no such source; the nearest are named.
        """
        if isinstance(policy, Policy):
            return policy
        if isinstance(policy, str):
            inner, slash, query = policy.partition("/")
            if slash:
                return Policy((inner,), query)
            _check(policy)
            return Policy((_INNER.get(policy, policy),), policy)
        *steps, query = policy
        return Policy(tuple(steps), query)

    def inner_source(self, step: int) -> str:
        """The source of an inner step, counted from 0."""
        return self.inner[min(step, len(self.inner) - 1)]

    @property
    def sources(self) -> frozenset[str]:
        """All sources that occur."""
        return frozenset({*self.inner, self.query})

    @property
    def transductive(self) -> bool:
        """Whether what is said of one query depends on which others are asked with it."""
        return self.query in TRANSDUCTIVE

    def __str__(self) -> str:
        """A text that :meth:`of` reads, as long as all inner steps use one source."""
        return (
            self.query if (_INNER.get(self.query, self.query),) == self.inner else "/".join((*self.inner, self.query))
        )


def _check(source: str) -> None:
    if source not in SOURCES:
        close = nearest(source, SOURCES, most=3)
        raise PolicyError(
            f"no statistics policy is called {source!r}\n"
            f"  found: {', '.join(SOURCES)}\n"
            f"  fix: {'did you mean ' + ' or '.join(map(repr, close)) + '? ' if close else ''}"
            "one of these, or 'INNER/QUERY' with two of them"
        )
