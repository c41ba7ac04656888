"""What the doctor found in a training loop as one self-contained HTML page: no network.

Knows dataclasses only. The same page gives the same bytes, so that reports can be compared and signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.findings import Finding, Severity
from frostline.report import figures
from frostline.report.contract_lines import STATES, ModuleLine, TensorLine
from frostline.report.contract_tree import TreeNode, grow_contract_tree
from frostline.report.drift import Drift, draw_drift
from frostline.report.mode_lanes import PASSES, DrawnModes, ModeTimeline, draw_modes
from frostline.report.page_templates import render_page
from frostline.report.rule_text import RuleText

SCHEMA_VERSION = 1
# So many modules that contradict the contract are opened at once.
_MOST_OPENED = 40
# So many rows of modules share the page among all models.
_MOST_ROWS = 3_000
_NOUNS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


@dataclass(frozen=True)
class FindingCard:
    """One finding, with what a reader needs beside it.

    Attributes:
        finding: the finding.
        subject: the place that it is about.
        type: the class of the module, model or optimizer there.
        meant: what was meant to happen there.
        observed: what did.
        lines: number and text of the lines around the user's line; empty where the file cannot be read.
        places: every path concerned, alike ones folded.
        how_safe: how safe the remedy is, in a sentence.
        in_memory: whether it can be applied in memory.
        known: whether a baseline has it.
    """

    finding: Finding
    subject: str
    type: str = ""
    meant: str = ""
    observed: str = ""
    lines: tuple[tuple[int, str], ...] = ()
    places: tuple[str, ...] = ()
    how_safe: str = ""
    in_memory: bool = False
    known: bool = False


@dataclass(frozen=True)
class GroupLine:
    """One parameter group.

    Attributes:
        number: its number.
        rates: first and last learning rate; the same where it did not change.
        weight_decay: its weight decay; ``None`` where it has none.
        tensors: how many tensors it holds.
        trainable: how many of them train.
        orphans: how many no model has.
        frozen: how many are frozen.
        ignored: settings that the optimizer does not know.
    """

    number: int
    rates: tuple[float, float]
    weight_decay: float | None
    tensors: int
    trainable: int
    orphans: int
    frozen: int
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizerPart:
    """One optimizer.

    Attributes:
        name: the variable that holds it.
        type: its class.
        steps: how many steps it did.
        groups: its groups.
        made: the line that made it; empty where that is not known.
        schedulers: the classes of its schedulers.
    """

    name: str
    type: str
    steps: int
    groups: tuple[GroupLine, ...]
    made: str = ""
    schedulers: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelPart:
    """One model.

    Attributes:
        name: the variable that holds it.
        type: its class.
        tensors: its tensors, in its order.
        modules: its modules.
        modes: when which part was in which mode.
        unowned: trainable tensors that no optimizer has, alike paths folded.
        unowned_count: how many they are.
    """

    name: str
    type: str
    tensors: tuple[TensorLine, ...] = ()
    modules: tuple[ModuleLine, ...] = ()
    modes: ModeTimeline | None = None
    unowned: tuple[str, ...] = ()
    unowned_count: int = 0


@dataclass(frozen=True)
class CrashPart:
    """What ended the loop: the exception, the user's line and the whole traceback."""

    type: str
    text: str
    place: str
    traceback: str


@dataclass(frozen=True)
class ComparedPart:
    """The same audit before and after remedies.

    Attributes:
        gone: findings that are no longer there.
        left: findings that still are.
        new: findings that were not there before.
        figures: a name, and its figure before and after.
    """

    gone: tuple[Finding, ...]
    left: tuple[Finding, ...]
    new: tuple[Finding, ...]
    figures: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class DoctorPage:
    """Everything that the page says.

    Attributes:
        title: what was run.
        steps: how many optimizer steps were audited.
        cost: seconds that watching took.
        seconds: seconds from beginning to end.
        cards: the findings, in the order in which they are to be read.
        rules: the texts of the rules behind them.
        sound: what was checked and found right, a sentence each.
        checked: the codes of the rules that were asked.
        missed: what could not be looked at, and why.
        models: the models.
        optimizers: the optimizers.
        ended: how the loop ended, where it did not simply finish.
        crash: what ended it, where it crashed.
        compared: the same audit before remedies.
        gone: findings of a baseline that are no longer there.
        facts: names and values, printed as they are.
        generator: the program and version that made the page.
    """

    title: str
    steps: int
    cost: float
    seconds: float
    cards: tuple[FindingCard, ...] = ()
    rules: tuple[RuleText, ...] = ()
    sound: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    models: tuple[ModelPart, ...] = ()
    optimizers: tuple[OptimizerPart, ...] = ()
    ended: str = ""
    crash: CrashPart | None = None
    compared: ComparedPart | None = None
    gone: int = 0
    facts: tuple[tuple[str, str], ...] = ()
    generator: str = ""

    def count(self, severity: Severity) -> int:
        """How many findings of this severity there are that no baseline has."""
        return sum(card.finding.severity is severity for card in self.cards if not card.known)


@dataclass(frozen=True)
class Verdict:
    """The result in a few words, and its tone: ``good``, ``bad`` or ``warn``."""

    tone: str
    claim: str
    evidence: str


@dataclass(frozen=True)
class DrawnModel:
    """A model with all that is drawn of it."""

    part: ModelPart
    tree: TreeNode
    drift: Drift
    modes: DrawnModes | None


def judge(page: DoctorPage) -> Verdict:
    """The verdict.

    Example:
        >>> judge(DoctorPage("train.py", 3, 0.1, 2.0)).claim
        'Nothing wrong was found'
        >>> judge(DoctorPage("train.py", 0, 0.1, 2.0)).claim
        'No optimizer step was seen'
    """
    steps = figures.count(page.steps, "step")
    until = ", until it crashed" if page.crash is not None else ""
    errors, warnings = page.count(Severity.ERROR), page.count(Severity.WARNING)
    found = [figures.count(n, _NOUNS[s]) for n, s in ((errors, Severity.ERROR), (warnings, Severity.WARNING)) if n]
    if found:
        return Verdict("bad" if errors else "warn", " and ".join(found), f"in {steps} of {page.title}{until}")
    if page.crash is not None:
        return Verdict("bad", "The loop crashed", f"after {steps}; nothing wrong was found until then")
    if not page.steps:
        return Verdict("warn", "No optimizer step was seen", "so nothing that a step does could be judged")
    new = "new " if any(card.known for card in page.cards) else ""
    return Verdict("good", f"Nothing {new}wrong was found".replace("new wrong", "new"), f"in {steps} of {page.title}")


def render_doctor(page: DoctorPage) -> str:
    """Render the page.

    Every name is escaped; the page loads nothing, and its content security policy forbids that it could. The same
    page gives the same text, byte for byte. Nothing is written.

    Args:
        page: what the page says.

    Returns:
        The text of one HTML file, to be written as UTF-8.

    Raises:
        MissingExtra: jinja2 is not installed.

    Example:
        >>> finding = Finding("F107", Severity.ERROR, "3 layers moved their statistics", "trunk.bn1")
        >>> page = DoctorPage("train.py", 3, 0.1, 2.0, (FindingCard(finding, "trunk.bn1"),), (RuleText("F107"),))
        >>> text = render_doctor(page)
        >>> "3 layers moved their statistics" in text, 'id="rule-F107"' in text
        (True, True)
    """
    models = [_drawn(model, page) for model in page.models]
    anchors: dict[str, str] = {}
    rules = {rule.code: rule for rule in page.rules}
    for number, card in enumerate(page.cards, start=1):
        anchors.setdefault(card.finding.code, f"finding-{number}")
        rules.setdefault(card.finding.code, RuleText(card.finding.code))
    return render_page(
        "doctor.html.j2",
        parts=("tree", "doctor"),
        scripts=("tree", "doctor"),
        filters={"sentence": _sentence, "duration": duration},
        page=page,
        verdict=judge(page),
        tallies=[(_NOUNS[severity], severity.value, page.count(severity)) for severity in _NOUNS],
        known=sum(card.known for card in page.cards),
        nouns={severity.value: noun for severity, noun in _NOUNS.items()},
        models=models,
        trees=[model for model in models if model.part.tensors],
        drifts=[model for model in models if model.drift.followed],
        timelines=[model for model in models if model.modes is not None],
        anchors=anchors,
        rules=list(rules.values()),
        opened=_opened(models),
        states=STATES,
        passes=PASSES,
        share=_share(page.cost, page.seconds),
        schema_version=SCHEMA_VERSION,
    )


def duration(value: float) -> str:
    """Seconds as printed.

    Example:
        >>> duration(0.0123), duration(0.84), duration(75.2)
        ('12 ms', '0.8 s', '75 s')
    """
    if value < 0.1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:,.0f} s"


def _drawn(model: ModelPart, page: DoctorPage) -> DrawnModel:
    tree = grow_contract_tree(model.tensors, model.modules, most=max(_MOST_ROWS // len(page.models), 50))
    modes = None if model.modes is None else draw_modes(model.modes)
    return DrawnModel(model, tree, draw_drift(model.tensors, page.steps), modes)


def _opened(models: Sequence[DrawnModel]) -> bool:
    """Whether so few modules are marked that all of them can stand open."""

    def marked(node: TreeNode) -> int:
        return int(node.marked) + sum(map(marked, node.children))

    return sum(marked(model.tree) for model in models) <= _MOST_OPENED


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole > part > 0 else ""


def _sentence(text: str) -> str:
    """The text with a capital, unless it begins with code."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].rstrip(",:").isalpha() else text
