"""What every check returns, and the one catalogue of rule codes; pure Python, knows nothing of torch.

A code is stable: once released it keeps its meaning. The catalogue holds the codes that the library emits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Severity(str, Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Safety(str, Enum):
    """How safe the remedy is: it may be applied unasked, may change meaning, or is advice."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    MANUAL = "manual"


CATALOGUE: dict[str, str] = {
    "F107": "parameters are frozen, but normalization statistics still move",
    "F113": "a frozen tensor is also used by a part that is not frozen",
    "F121": "parameters next to a frozen part stay trainable",
    "M205": "a frozen part gives different results for the same input",
    "N302": "a normalization layer has no running statistics and depends on the batch in eval mode too",
    "N309": "statistics were estimated on data whose classes are not those that they will be used for",
}


@dataclass(frozen=True)
class Finding:
    """One mistake, or one fact that the user should know.

    Attributes:
        code: a key of :data:`CATALOGUE`.
        severity: ``error``, ``warning`` or ``info``.
        message: one line.
        where: a dotted path in the model.
        evidence: what was measured or seen.
        remedy: the narrow fix.
        safety: how safe the remedy is.
        paths: every path concerned.
    """

    code: str
    severity: Severity
    message: str
    where: str
    evidence: str = ""
    remedy: str = ""
    safety: Safety = Safety.MANUAL
    paths: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.code not in CATALOGUE:
            raise ValueError(f"finding {self.code!r} is not in the catalogue of rule codes")

    def __str__(self) -> str:
        lines = [f"{self.code} {self.severity.value}: {self.message}"]
        if self.evidence:
            lines.append(f"  seen: {self.evidence}")
        if self.remedy:
            lines.append(f"  fix:  {self.remedy}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready values."""
        return {**asdict(self), "severity": self.severity.value, "safety": self.safety.value, "paths": list(self.paths)}
