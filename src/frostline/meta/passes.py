"""From a policy to single passes: which values a source stands for in an inner step and in the query pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from frostline.errors import PolicyError, name_some
from frostline.meta.functional_model import FunctionalModel, Pass, Result
from frostline.meta.norm_parameters import NormParameters
from frostline.meta.normalizing import LayerStatistics
from frostline.meta.policy import Policy
from frostline.meta.statistics import KeptStatistics

Values = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Passes:
    """Everything but weights and data that decides over the passes of one task.

    Attributes:
        run: the model as a function.
        policy: the sources.
        kept: the statistics that meta-training left.
        norms: the policy's own parameters.
        support: the inputs of the support set.
        vmapped: whether the passes run under ``vmap``.
    """

    run: FunctionalModel
    policy: Policy
    kept: KeptStatistics
    norms: NormParameters
    support: Any
    vmapped: bool = False

    def inner(self, values: Values, step: int, buffers: Values, *, observe: bool) -> Result:
        """Run the support set in an inner step, counted from 0."""
        source = self.policy.inner_source(step)
        settings = self.settings(source, step)
        settings = replace(settings, observe="values" if observe else "no")
        return self.run({**values, **self.norms.affine_of(step)}, settings, self.support, buffers)

    def query(
        self, values: Values, inputs: Any, source: str, buffers: Values, *, graph: bool, observe: bool = False
    ) -> Result:
        """Run the query set with adapted weights.

        Args:
            values: the adapted weights.
            inputs: the queries.
            source: what to normalize with.
            buffers: the buffers after the inner steps.
            graph: whether the outer gradient has to go through the statistics of the support set.
            observe: whether to return the statistics of the queries.
        """
        values = {**values, **self.norms.affine_of(None)}
        if source == "reptile":
            return self._one_by_one(values, inputs, buffers, observe=observe)
        settings = replace(self.settings(source, None), once=graph)
        if source == "support" or source.startswith("task_norm"):
            settings = replace(settings, given=self.of_support(values, source, buffers, graph=graph))
        return self.run(values, replace(settings, observe="values" if observe else "no"), inputs, buffers)

    def of_support(self, values: Values, source: str, buffers: Values, *, graph: bool) -> Mapping[str, LayerStatistics]:
        """The statistics of the support set with these weights."""
        how: Literal["graph", "values"] = "graph" if graph else "values"
        use = self.settings("batch" if source == "support" else source, None)
        return self.run(values, replace(use, observe=how), self.support, buffers).observed

    def settings(self, source: str, step: int | None) -> Pass:
        """What a source means for an inner step, counted from 0, or for the query pass (``None``)."""
        if source in ("batch", "support", "reptile"):
            return Pass("given" if source == "support" and step is None else "batch", vmapped=self.vmapped)
        if source in ("frozen", "running", "population", "per_step"):
            return Pass("given", given=self.kept.of_source(source, step), vmapped=self.vmapped)
        shares = self.norms.shares(len(_first(self.support))) if source.startswith("task_norm") else {}
        return Pass(cast("Any", source), shares=shares, vmapped=self.vmapped)

    def _one_by_one(self, values: Values, inputs: Any, buffers: Values, *, observe: bool) -> Result:
        """Each query in one batch with the whole support set."""
        queries, support = _parts(inputs), _parts(self.support)
        settings = Pass("batch", observe="values" if observe else "no", vmapped=self.vmapped)
        outputs: list[Tensor] = []
        observed: dict[str, LayerStatistics] = {}
        for place in range(len(queries[0])):
            joint = tuple(torch.cat([s, q[place : place + 1]]) for s, q in zip(support, queries, strict=True))
            result = self.run(values, settings, joint if isinstance(inputs, tuple) else joint[0], buffers)
            outputs.append(result.output[-1:])
            for path, seen in result.observed.items():
                observed[path] = observed[path].merged(seen) if path in observed else seen
        return Result(torch.cat(outputs), observed, dict(buffers))


def check_policy(policy: Policy, layers: Mapping[str, Any], kept: KeptStatistics, model: str) -> None:
    """Refuse a policy that a model cannot have.

    Raises:
        PolicyError: the model has no layer for it to decide over, or a layer has no buffers for ``frozen``.
    """
    if not layers:
        raise PolicyError(
            f"policy {str(policy)!r} was asked for, and {model} has no batch norm that is not held: there is nothing "
            "to decide\n  fix: leave policy= out; layer norm, group norm and instance norm need none"
        )
    without = [path for path in layers if path not in kept.frozen]
    if "frozen" in policy.sources and without:
        raise PolicyError(
            f"policy {str(policy)!r} uses the model's own running statistics, and some layers keep none "
            f"(track_running_stats=False)\n  found: {name_some(without)}\n"
            "  fix: 'running' or 'population', which meta-training keeps outside the model"
        )


def _parts(inputs: Any) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", inputs) if isinstance(inputs, tuple) else (inputs,)


def _first(inputs: Any) -> Tensor:
    return _parts(inputs)[0]
