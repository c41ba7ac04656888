"""What the doctor prints: a head, findings with their evidence, what was right, and what could not be looked at."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from planted_loops import f107, marked_line
from rich.console import Console

from frostline.audit.contract import REASONS
from frostline.audit.events import Step
from frostline.audit.places import NOWHERE, Place
from frostline.audit.seen import Crash, GroupSeen, ModelSeen, ModuleSeen, OptimizerSeen, Phase, Seen, TensorSeen
from frostline.baseline import Baseline
from frostline.cli.doctor_subjects import subject_of
from frostline.cli.doctor_text import print_examination, told
from frostline.doctor import Examination, examine
from frostline.findings import Finding, Safety, Severity

MEAN = "trunk.1.running_mean"
MOVED = Finding(
    "F107",
    Severity.ERROR,
    "2 normalization layers of a frozen part moved their statistics",
    MEAN,
    f"{MEAN}: moved by up to 0.195 in 4 steps\n"
    "training=True in 2 layers (set by model.train() at train.py:37); requires_grad=False does not stop statistics",
    'frostline.freeze(model, "trunk")',
    Safety.SAFE,
    (MEAN, "trunk.1.running_var"),
    "train.py",
    41,
    0,
    "logits = model(x)",
    "model",
    True,
)
ORPHANS = Finding(
    "O402",
    Severity.WARNING,
    "the optimizer holds 2 tensors that no model has",
    "optimizer",
    remedy="optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nscheduler = StepLR(optimizer, 3)",
)
LOADED = Finding("M209", Severity.INFO, "loading set the model to eval mode", "model", model="model")
SOUND = ("9 frozen parameters did not move", "gradients were cleared before every backward pass")


def seen(steps: int = 4, **more: object) -> Seen:
    def tensor(path: str, kind: str, role: str, **facts: object) -> TensorSeen:
        return TensorSeen(path, kind, role, path.rpartition(".")[0], "BatchNorm1d", (8,), numel=8, **facts)  # type: ignore[arg-type]

    tensors = [
        tensor(MEAN, "buffer", "norm.mean", must_stay="requires_grad", moved=True),
        tensor("trunk.1.running_var", "buffer", "norm.var", must_stay="requires_grad", moved=True),
        tensor("head.weight", "parameter", "weight", trainable=True, trainable_now=True, moved=True),
    ]
    modules = [
        ModuleSeen("", "Net"),
        ModuleSeen("trunk", "Sequential", frozen=True),
        ModuleSeen("trunk.1", "BatchNorm1d", must_eval="hold", training_now=False),
    ]
    model = ModelSeen("model", "Net", {t.path: t for t in tensors}, {m.path: m for m in modules})
    optimizer = OptimizerSeen("optimizer", "SGD", [GroupSeen([("model", "head.weight")], {"lr": 0.1})], steps)
    events = [
        Step(
            at=i,
            step=i,
            optimizer="optimizer",
            rates=(0.1,),
            forwards=1,
            backwards=1,
            rows=(4,),
            tensors=1,
            without_grad=0,
        )
        for i in range(steps)
    ]
    facts: dict[str, object] = {"cost": 0.84, "seconds": 20.0, "script": "train.py"}
    return Seen([model], [optimizer], list(events), **(facts | more))  # type: ignore[arg-type]


def examination(*findings: Finding, sound: tuple[str, ...] = SOUND, **more: object) -> Examination:
    repairs = {finding.id: lambda: "done" for finding in findings if finding.safety is Safety.SAFE}
    return Examination(findings, seen(**more), ["F107", "O402"], sound, repairs)  # type: ignore[arg-type]


def lines(*findings: Finding, plain: bool = True, width: int = 80, **more: object) -> list[str]:
    return [line.plain for line in told(examination(*findings, **more), width=width, plain=plain)]  # type: ignore[arg-type]


WHOLE = """\
doctor  train.py  4 steps audited (+0.8 s)
        x 1 error  ! 1 warning  i 1 note  v 2 checks

x trunk.1.running_mean +1 more   BatchNorm1d   inferred frozen, moved
  2 normalization layers of a frozen part moved their statistics
  |- trunk.1.running_mean: moved by up to 0.195 in 4 steps
  |- training=True in 2 layers (set by model.train() at train.py:37);
  |  requires_grad=False does not stop statistics
  |- nothing was declared: what was meant was inferred
  `- cause F107  at train.py:41  logits = model(x)
     fix (safe, in memory)  frostline.freeze(model, "trunk")
     frostline rule F107

! optimizer   SGD
  the optimizer holds 2 tensors that no model has
  `- cause O402
     fix (manual)
       optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
       scheduler = StepLR(optimizer, 3)
     frostline rule O402

i model   Net
  loading set the model to eval mode
  `- cause M209
     frostline rule M209

checked and found right
  v 9 frozen parameters did not move
  v gradients were cleared before every backward pass"""


def test_the_whole_of_it() -> None:
    assert "\n".join(lines(MOVED, ORPHANS, LOADED)) == WHOLE


def test_a_short_fix_stands_in_one_line_with_its_rule() -> None:
    short = replace(MOVED, remedy="freeze(model)")
    assert "     fix (safe, in memory)  freeze(model)  -  frostline rule F107" in lines(short)


def test_counts_stand_at_the_right_where_they_fit() -> None:
    (head, *_) = lines(MOVED)
    assert head == "doctor  train.py  4 steps audited (+0.8 s)                 x 1 error  v 2 checks"
    assert len(head) == 80
    assert len(lines(LOADED, width=100)[0]) == 100
    assert lines(MOVED, width=60)[:2] == ["doctor  train.py  4 steps audited (+0.8 s)", "        x 1 error  v 2 checks"]


def test_nothing_found() -> None:
    head, *rest = lines()
    assert head.startswith("doctor  train.py  4 steps audited (+0.8 s)  ")
    assert head.endswith("nothing found  v 2 checks")
    assert rest[:2] == ["", "checked and found right"]


def test_a_loop_without_a_step_says_so() -> None:
    text = "\n".join(lines(sound=(), steps=0, ended="exited", missed=["the model was never called"]))
    assert "no step was seen (+0.8 s)" in text
    assert "nothing found" not in text
    assert "no step was done while it was watched" in " ".join(text.split())
    assert "        the script left by itself (sys.exit)" in text
    assert text.endswith("not looked at\n  - the model was never called")


def test_a_crash_comes_first_with_its_own_traceback() -> None:
    trace = 'Traceback (most recent call last):\n  File "train.py", line 42\nValueError: \x1b[31mshapes differ\n'
    crash = Crash("ValueError", "shapes differ", Place("train.py", 42), trace)
    text = lines(MOVED, crash=crash, ended="crashed")
    assert text[:3] == [
        "Traceback (most recent call last):",
        '  File "train.py", line 42',
        "ValueError: \\x1b[31mshapes differ",
    ]
    assert text[4] == "The loop ended with ValueError at train.py:42; this is what was seen until then."
    assert text[6].startswith("doctor  train.py")


def test_before_and_after() -> None:
    after = examination(ORPHANS, LOADED)
    text = [line.plain for line in told(after, earlier=examination(MOVED, ORPHANS))]
    assert text[2:6] == [
        "before and after: 2 findings, now 2",
        "  v F107 gone: 2 normalization layers of a frozen part moved their statistics",
        "  - O402 still there: the optimizer holds 2 tensors that no model has",
        "  + M209 new: loading set the model to eval mode",
    ]


def test_what_a_baseline_has_is_counted_and_not_told() -> None:
    found = examination(MOVED, ORPHANS)
    gone = replace(MOVED, where="other", code="F106")
    split = Baseline.of([MOVED, gone]).split(found)
    text = "\n".join(line.plain for line in told(found, split=split))
    assert "! 1 warning" in text.splitlines()[0] + text.splitlines()[1]
    assert "x 1 error" not in text
    assert "cause F107" not in text
    assert "cause O402" in text
    assert "1 finding of the baseline not shown: F107\n1 of the baseline not found any more: F106" in text
    alone = examination(MOVED)
    nothing = "\n".join(line.plain for line in told(alone, split=Baseline.of(alone).split(alone)))
    assert "nothing new" in nothing


LONG = "w" * 300


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("plain", [True, False])
def test_nothing_is_wider_than_it_may_be(width: int, plain: bool) -> None:
    awful = replace(MOVED, message=f"{LONG} moved", evidence=f"a {LONG}\n" + "word " * 60, source=LONG, where=LONG)
    text = lines(awful, ORPHANS, LOADED, width=width, plain=plain, script="train.py", missed=[LONG])
    copied = ("fix (", "optimizer = ", "scheduler = ", LONG[:100])
    wide = [line for line in text if len(line) > min(width, 100) and not any(part in line for part in copied)]
    assert wide == []


def test_names_cannot_play_with_the_terminal() -> None:
    text = "\n".join(lines(replace(MOVED, message="a\x1b[2Jb", where="c\x07", evidence="d\x1b]0;e", source="\x1bf")))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "a\\x1b[2Jb" in text


# Where it is printed


def printed(terminal: bool, encoding: str = "utf-8", *findings: Finding) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    console = Console(file=stream, width=80, force_terminal=terminal, color_system="standard" if terminal else None)
    print_examination(console, examination(*findings))
    stream.flush()
    stream.seek(0)
    return stream.read()


def test_a_terminal_gets_signs_and_colors_and_a_file_gets_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    fancy, plain = printed(True, "utf-8", MOVED), printed(False, "utf-8", MOVED)
    assert "\x1b[31m✗" in fancy
    assert "└─ cause" in fancy
    assert plain.isascii()
    assert "\x1b" not in plain
    assert "`- cause F107" in plain


def test_no_color_is_plain_in_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(True, "utf-8", MOVED)
    assert "✗" not in text
    assert "x 1 error" in text
    assert "\x1b[31m" not in text


def test_what_an_encoding_cannot_say_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = printed(False, "ascii", replace(MOVED, message="größe moved"))
    assert "gr\\xf6\\xdfe moved" in text


# What a finding is about


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (MEAN, (MEAN, "BatchNorm1d", "inferred frozen, moved")),
        ("head.weight", ("head.weight", "BatchNorm1d", "trainable, moved")),
        ("trunk.1", ("trunk.1", "BatchNorm1d", "declared eval")),
        ("trunk", ("trunk", "Sequential", "frozen")),
        ("model", ("model", "Net", "")),
        ("", ("model", "Net", "")),
        ("optimizer", ("optimizer", "SGD", "")),
        ("nowhere", ("nowhere", "", "")),
    ],
)
def test_subjects(where: str, expected: tuple[str, str, str]) -> None:
    subject = subject_of(replace(MOVED, where=where, paths=()), seen())
    assert (subject.name, subject.type, subject.contrast) == expected


@pytest.mark.parametrize(
    ("ran", "must_eval", "expected"),
    [
        (((), ("trunk.1",)), "eval", "inferred eval, ran in train mode"),
        (((), ()), "eval", "inferred eval, ran in eval mode"),
        ((("trunk.1",), ("trunk.1",)), "", "ran in train mode"),
        (((), ("trunk.1",)), "", ""),
    ],
)
def test_the_mode_is_that_of_training_and_not_that_of_the_end(
    ran: tuple[tuple[str, ...], ...], must_eval: str, expected: str
) -> None:
    one = seen()
    one.models[0].modules["trunk.1"] = ModuleSeen("trunk.1", "BatchNorm1d", frozenset({"stats"}), must_eval=must_eval)
    one.models[0].phases = [
        Phase("model", "", True, True, number, number, 1, NOWHERE, (), on) for number, on in enumerate(ran)
    ]
    assert subject_of(replace(MOVED, where="trunk.1", paths=()), one).contrast == expected


@pytest.mark.parametrize(
    ("trainable", "now", "expected"),
    [(True, True, "trainable, moved"), (True, False, "frozen later, moved"), (False, True, "unfrozen later, moved")],
)
def test_a_flag_that_changed_is_shown_as_changed(trainable: bool, now: bool, expected: str) -> None:
    one = seen()
    head = one.models[0].tensors["head.weight"]
    head.trainable, head.trainable_now = trainable, now
    assert subject_of(replace(MOVED, where="head.weight", paths=()), one).contrast == expected


def test_with_several_models_each_is_named() -> None:
    two = seen()
    two.models.append(ModelSeen("teacher", "Net", {}, {}))
    assert subject_of(MOVED, two).name == f"model.{MEAN}"
    assert subject_of(replace(MOVED, model="", where="elsewhere"), two).name == "elsewhere"


def test_every_reason_is_either_declared_or_inferred() -> None:
    for reason in REASONS:
        one = seen()
        one.models[0].tensors[MEAN].must_stay = reason
        assert subject_of(MOVED, one).meant in {"declared frozen", "inferred frozen"}


def test_a_real_loop() -> None:
    text = "\n".join(line.plain for line in told(examine(f107.failing())))
    place = f"benchmarks/planted_loops/f107.py:{marked_line(f107.failing, 'F107')}"
    assert text.startswith("doctor  model (Sequential)  4 steps audited (+")
    assert "BatchNorm1d   inferred frozen, moved" in text
    assert f"`- cause F107  at {place}  logits = model(x)" in text
    assert 'fix (safe, in memory)  frostline.freeze(model, "0")' in text
    assert "checked and found right" in text
