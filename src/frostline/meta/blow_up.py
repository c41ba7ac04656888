"""Why an inner loop blew up, as a value that prints itself; knows no model. What measures it is `blow_up_measured`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from frostline.json_values import finite
from frostline.tables import html_text

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Grown:
    """The layer that grew first.

    Attributes:
        layer: its path.
        kind: its class name.
        step: the step after which it had grown, counted from 1.
        before: the norm of its adapted weights at the start.
        after: likewise after that step.
    """

    layer: str
    kind: str
    step: int
    before: float
    after: float


@dataclass(frozen=True)
class Steepest:
    """The batch norm with the largest gain in the first step.

    Attributes:
        path: where it is.
        behind: path of the adapted layer whose output it normalizes; ``None`` if there is none.
        gain: |weight| / sigma of the channel where it is largest.
        sigma: what that channel was divided by.
        own: sigma of the same channel in the batch that went through.
    """

    path: str
    behind: str | None
    gain: float
    sigma: float
    own: float


@dataclass(frozen=True)
class Tried:
    """An inner loop that was run on the same task instead.

    Attributes:
        policy: the statistics policy.
        rate: the rate of the inner steps.
        first: the support loss before the first step.
        last: the support loss after the last step; for another policy than that of the blow-up, in its query pass.
    """

    policy: str
    rate: float
    first: float
    last: float

    def __str__(self) -> str:
        return f"{self.first:.3g} -> {self.last:.3g}"


@dataclass(frozen=True)
class BlowUp:
    """An inner loop that was stopped, and why it blew up.

    Attributes:
        policy: the statistics policy.
        rate: the rate of the inner steps, the one that they began with if rates are learned.
        steps: how many were to be taken.
        step: the one after which it was stopped, counted from 1.
        reason: ``loss``, ``norm`` or ``not finite``.
        losses: on the support set before each step.
        norms: of the adapted weights by layer, at the start and after each step.
        grown: the layer that grew first.
        fixed: the sources of the inner steps whose statistics are fixed while the weights move.
        steepest: the batch norm with the largest gain; ``None`` without any, or if nothing was measured.
        curvature: the largest eigenvalue of the Hessian of the first step's loss over the adapted weights; ``None`` if
            it was not measured or is not finite.
        limit: 2 / curvature, above which gradient descent is unstable around where it began; ``None`` for optimizers
            other than plain SGD.
        stable: the largest rate that was tried for which no step led to a higher loss than that of the start.
        instead: other policies for which, at the same rate, the loss fell and nothing grew; the lowest loss first,
            those with fixed statistics in the query pass last.
    """

    policy: str
    rate: float
    steps: int
    step: int
    reason: str
    losses: tuple[float, ...]
    norms: dict[str, tuple[float, ...]]
    grown: Grown
    fixed: tuple[str, ...]
    steepest: Steepest | None = None
    curvature: float | None = None
    limit: float | None = None
    stable: Tried | None = None
    instead: tuple[Tried, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values with a schema version."""
        return finite({"schema_version": SCHEMA_VERSION, **asdict(self)})

    def __str__(self) -> str:
        went = ", ".join(f"{loss:.3g}" for loss in self.losses)
        title = (
            f"adapting blew up in inner step {self.step} of {self.steps}, and was stopped: the support loss went "
            f"{went} (policy {self.policy!r}, rate {self.rate:g})"
        )
        rows = {"found": self._grown(), "why": self._why(), "rate": self._rate(), "fix": self._fix()}
        return "\n".join([title, *(f"  {name}: {text}" for name, text in rows.items() if text)])

    def _repr_html_(self) -> str:
        return html_text(self)

    def _grown(self) -> str:
        grown = self.grown
        growth = grown.after / grown.before if grown.before else float("inf")
        path = f"{grown.layer!r} ({grown.kind})" if grown.layer else grown.kind
        said = f"{path} grew first, its norm from {grown.before:.3g} to {grown.after:.3g} in step {grown.step}"
        last = self.norms[grown.layer][-1]
        later = f", {last:.3g} after step {self.step}" if self.step > grown.step else ""
        return f"{said} ({growth:.2f} times){later}"

    def _why(self) -> str:
        steepest = ""
        if self.steepest is not None:
            s = self.steepest
            behind = "" if s.behind is None else f" behind {s.behind!r}"
            own = f"; its batch has {s.own:.2g}" if self.fixed else ""
            steepest = (
                f"the largest gain |weight| / sigma is {s.gain:.3g}, of {s.path!r}{behind} (sigma {s.sigma:.2g}{own})"
            )
        if self.fixed:
            named = " and ".join(map(repr, self.fixed))
            return (
                f"{named} statistics stay fixed while the weights in front of them move: w * x / sigma grows with w, "
                "which it does not with the batch's own sigma, and that is what keeps a step stable"
                + (f"; {steepest}" if steepest else "")
            )
        if steepest:
            return f"the statistics were not fixed, so the rate is too large for this loss; {steepest}"
        return "the rate is too large for this loss"

    def _rate(self) -> str:
        parts: list[str] = []
        if self.curvature is not None and self.curvature > 0:
            allows = (
                "" if self.limit is None else f", which a rate of 2 / {self.curvature:.4g} = {self.limit:.2g} bears"
            )
            parts.append(f"the loss curves with {self.curvature:.4g} at the start{allows}")
        if self.stable is not None:
            parts.append(
                f"tried on this task, {self.stable.rate:g} never raises the loss: {self.stable} in {self.steps} steps"
            )
        return "; ".join(parts)

    def _fix(self) -> str:
        if self.instead:
            best = " or ".join(f"{tried.policy!r} (loss {tried})" for tried in self.instead[:3])
            more = f" (+{len(self.instead) - 3} more; report.instead)" if len(self.instead) > 3 else ""
            return f"policy={best}, as tried on this task at rate {self.rate:g}{more}" + self._smaller("; or ")
        return self._smaller("") or "another policy of statistics in the inner steps, or a smaller inner_lr"

    def _smaller(self, before: str) -> str:
        return "" if self.stable is None else f"{before}inner_lr={self.stable.rate:g}"
