"""What every check returns, and the one catalogue of rule codes; pure Python, knows nothing of torch.

A code is stable: once released it keeps its meaning. The letter says what it is about: freezing (F), modes (M), norm
statistics (N), the optimizer and the loop (O), schedules (S), checkpoints (C), heads and registration (H),
meta-learning (T), distributed and compiled runs (D).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from hashlib import sha256
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
    "F101": "an attribute that looks like requires_grad but means nothing was set: nothing is frozen",
    "F102": "requires_grad was set on a module, which does nothing",
    "F103": "the method requires_grad_ was overwritten, or the flag was compared instead of set",
    "F104": "a generator of requires_grad_ calls was never consumed: nothing is frozen",
    "F105": "another framework's way of freezing was used, which means nothing to PyTorch",
    "F106": "eval() was taken for freezing: the weights train",
    "F107": "parameters are frozen, but normalization statistics still move",
    "F108": "what was frozen is made trainable again later",
    "F109": "a parameter was frozen between backward and step: its gradient is still applied",
    "F110": "a frozen parameter keeps moving: its gradient is zero, not None",
    "F111": "a learning rate of 0 was taken for freezing",
    "F112": "a flag in a parameter group was taken for freezing; the optimizer ignores it",
    "F113": "a frozen tensor is also used by a part that is not frozen",
    "F114": "a parameter that was made after freezing is trainable",
    "F115": "a filter by name matches everything or nothing",
    "F116": "a framework's switch for freezing does not do what it says",
    "F117": "a trainable part runs without gradients and never learns",
    "F118": "reentrant checkpointing behind a frozen part cuts off the gradients",
    "F119": "frozen values were written by hand",
    "F120": "freezing sits in a train() that was not called before the first step",
    "F121": "parameters next to a frozen part stay trainable",
    "M201": "validation runs in train mode",
    "M202": "train mode was not restored after validation",
    "M203": "a later train() undid eval() of a part that was meant to stay in eval mode",
    "M204": "the mode was set on a module alone, or not at all: parent and children differ",
    "M205": "a part draws random numbers in eval mode too",
    "M206": "attention drops in eval mode too",
    "M207": "dropout is active in a frozen part",
    "M208": "a network that only gives targets runs in train mode",
    "M209": "loading changed the mode of a model",
    "M210": "switching to eval mode and back changes the model",
    "M211": "the optimizer's own mode does not follow the model's",
    "N301": "normalization layers of one kind were put into eval mode, those of another kind were missed",
    "N302": "a normalization layer has no running statistics and depends on the batch in eval mode too",
    "N303": "a normalization layer uses the batch in eval mode, hard-coded",
    "N304": "averaged weights were used with statistics that do not belong to them",
    "N305": "a moving average of a model leaves out or spoils its buffers",
    "N306": "the input does not look like what the pretrained statistics expect",
    "N307": "statistics adapt to the data that is tested on",
    "N308": "spectral or weight normalization was never initialized by a training step",
    "N309": "statistics were estimated on data whose classes are not those that they will be used for",
    "O401": "parameters that were unfrozen later are in no optimizer",
    "O402": "the optimizer holds parameters that the model no longer has",
    "O403": "frozen parameters are kept in the optimizer",
    "O404": "loading replaced the parameters that the optimizer holds",
    "O405": "an optimizer was given an iterator that was used up",
    "O406": "gradients are never cleared and pile up",
    "O407": "gradients are cleared before the step that should use them",
    "O408": "gradient accumulation steps at the wrong micro-batch",
    "O409": "the loss is averaged over micro-batches of different sizes",
    "O410": "gradients are clipped while they are still scaled",
    "O411": "clipping counts gradients that no optimizer uses",
    "O412": "trainable parameters are in no optimizer",
    "O413": "the optimizer holds frozen parameters only",
    "O414": "the loss is computed from the input, not from the prediction",
    "S451": "a parameter group came after the scheduler and is scheduled wrongly",
    "S452": "the scheduler steps before the optimizer",
    "S453": "the learning rate jumps on resuming: the scheduler's state was not loaded",
    "S454": "a checkpoint's optimizer has another number of parameter groups",
    "C501": "a checkpoint was loaded loosely and little of it arrived",
    "C502": "loading a checkpoint changed nothing",
    "C503": "the best state was kept without a copy and moves along",
    "C504": "the optimizer's state belongs to other parameters",
    "C505": "loading the optimizer overwrote hyperparameters that were just set",
    "C506": "a checkpoint of the trained part lacks statistics that moved",
    "C507": "a checkpoint of the trained part lacks parameters that were trained",
    "C508": "a checkpoint lacks frozen parameters or their state",
    "C509": "a reload forgot what was frozen",
    "C510": "a tensor is not initialized: it holds NaN or absurd values",
    "C511": "a checkpoint was saved while an adapter was merged",
    "H601": "layers are kept in a plain list or dict: torch does not see them",
    "H602": "a trainable parameter never gets a gradient",
    "H603": "forward() was called directly, past every hook",
    "H604": "a statement has no effect: no_grad() without with, or a misspelt method",
    "T701": "statistics move while a learner is tested",
    "T702": "a functional call moves the buffers of the real module",
    "T703": "statistics of one task reach the next",
    "T704": "the inner loop wrote into the meta-parameters",
    "D801": "requires_grad changed after the model was wrapped for distributed training",
    "D802": "parameters were moved or replaced after the model was wrapped",
    "D803": "the distributed wrapper was bypassed: gradients are not averaged",
    "D804": "buffers differ between processes",
    "D805": "sharded parameters are not frozen as declared",
    "D806": "the optimizer was made before the model was wrapped or sharded",
    "D807": "parameters differ between processes",
    "D808": "a compiled step kept an old state of freezing",
}


@dataclass(frozen=True)
class Finding:
    """One mistake, or one fact that the user should know.

    Attributes:
        code: a key of :data:`CATALOGUE`.
        severity: ``error``, ``warning`` or ``info``.
        message: one line.
        where: a dotted path in the model.
        evidence: what was measured or seen, a line each.
        remedy: the narrow fix.
        safety: how safe the remedy is.
        paths: every path concerned.
        file: the source file of the line that made it; empty where that is not known.
        line: the number of that line, from 1; 0 where it is not known.
        column: its column, from 1; 0 likewise.
        source: the text of that line.
        model: the name of the model, where several were looked at or one was named.
        inferred: what was broken was inferred to be meant, not declared.
    """

    code: str
    severity: Severity
    message: str
    where: str
    evidence: str = ""
    remedy: str = ""
    safety: Safety = Safety.MANUAL
    paths: tuple[str, ...] = field(default=())
    file: str = ""
    line: int = 0
    column: int = 0
    source: str = ""
    model: str = ""
    inferred: bool = False

    def __post_init__(self) -> None:
        if self.code not in CATALOGUE:
            raise ValueError(f"finding {self.code!r} is not in the catalogue of rule codes")

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stay the same while rule, model, place in the model and line of source do.

        The text of the line counts, not its number, so that an edit further up does not make an old finding new.

        Example:
            >>> one = Finding("F107", Severity.ERROR, "3 layers move", "trunk", file="train.py", line=3, source="a()")
            >>> two = Finding("F107", Severity.ERROR, "4 layers move", "trunk", file="train.py", line=9, source="a()")
            >>> one.id == two.id
            True
        """
        site = "\0".join([self.code, self.model, self.where, self.file, self.source])
        return sha256(site.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        lines = [f"{self.code} {self.severity.value}: {self.message}"]
        lines += _labelled("seen", self.evidence)
        if self.line:
            lines.append(f"  at:   {self.file}:{self.line}  {self.source}".rstrip())
        lines += _labelled("fix", self.remedy)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready values."""
        return {
            **asdict(self),
            "id": self.id,
            "severity": self.severity.value,
            "safety": self.safety.value,
            "paths": list(self.paths),
        }


def _labelled(label: str, text: str) -> list[str]:
    """The lines of a text behind a label, the later ones in line with the first."""
    if not text:
        return []
    first, *rest = text.splitlines()
    return [f"  {label + ':':5} {first}", *(f"        {line}" for line in rest)]
