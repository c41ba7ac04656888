"""What a rule of the catalogue says to people: plain texts, whoever looks for the mistake."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.findings import CATALOGUE, Safety, Severity

# The first letter of a code says what it is about.
FAMILIES = {
    "F": "freezing",
    "M": "modes",
    "N": "normalization statistics",
    "O": "optimizer and loop",
    "S": "schedules",
    "C": "checkpoints",
    "H": "heads and registration",
    "T": "meta-learning",
    "D": "distributed and compiled runs",
}


@dataclass(frozen=True)
class RuleText:
    """All that a rule has to say; every field but the code may be empty.

    Attributes:
        code: its code in the catalogue.
        what: what it does.
        why: why the mistake is bad.
        evidence: what is seen of it.
        example: code that makes the mistake.
        instead: the same code done right.
        remedy: how it is mended.
        safety: how safe that is.
        how_safe: the same in a sentence.
        false_alarms: when it speaks although nothing is wrong, and how to silence it.
        source: a public report, a paper or a file.
        severity: how bad its findings usually are; each finding says its own.
    """

    code: str
    what: str = ""
    why: str = ""
    evidence: str = ""
    example: str = ""
    instead: str = ""
    remedy: str = ""
    safety: Safety = Safety.MANUAL
    how_safe: str = ""
    false_alarms: str = ""
    source: str = ""
    severity: Severity = Severity.WARNING

    @property
    def title(self) -> str:
        """The mistake in one line, as the catalogue has it."""
        return CATALOGUE[self.code]

    @property
    def family(self) -> str:
        """What it is about.

        Example:
            >>> RuleText("F107").family
            'freezing'
        """
        return FAMILIES[self.code[0]]

    def parts(self) -> list[tuple[str, str, bool]]:
        """Heading, text, and whether the text is code: what there is to read, in its order.

        Example:
            >>> RuleText("F107", what="Compares.", example="model.train()").parts()
            [('What it does', 'Compares.', False), ('Example', 'model.train()', True)]
        """
        return [part for part in self._all_parts() if part[1]]

    def _all_parts(self) -> list[tuple[str, str, bool]]:
        return [
            ("What it does", self.what, False),
            ("Why it is bad", self.why, False),
            ("What is seen", self.evidence, False),
            ("Example", self.example, True),
            ("Use instead", self.instead, True),
            ("Remedy", self.remedy, False),
            ("Fix safety", _with(self.safety.value, self.how_safe), False),
            ("False alarms", self.false_alarms, False),
            ("Source", self.source, False),
        ]


def _with(word: str, sentence: str) -> str:
    """A sentence that begins with a word, which many already do."""
    if not sentence:
        return ""
    return sentence if sentence.startswith(word) else f"{word}: {sentence}"
