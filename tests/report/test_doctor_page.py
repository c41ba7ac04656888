"""The doctor's page as text: what it says, that it is safe, that it stays small, and is the same every time."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.findings import Finding, Safety, Severity
from frostline.report.contract_lines import STATES, ModuleLine, TensorLine
from frostline.report.contract_tree import TreeNode, grow_contract_tree
from frostline.report.doctor_page import (
    ComparedPart,
    CrashPart,
    DoctorPage,
    FindingCard,
    GroupLine,
    ModelPart,
    OptimizerPart,
    judge,
    render_doctor,
)
from frostline.report.drift import draw_drift
from frostline.report.mode_lanes import Flip, Lane, ModeLine, ModeTimeline, PassRun, draw_modes
from frostline.report.rule_text import RuleText

HOSTILE = "</style></title></script><script>alert('x')</script><img src=x onerror=alert(1)>\"'`{{ 7*7 }}&"
VOID = {"meta", "link", "input", "br", "img", "wbr"}
LOADING = {"src", "srcset", "href", "data", "action", "formaction", "poster", "background", "ping", "xlink:href"}

MOVED = Finding(
    "F107",
    Severity.ERROR,
    "3 normalization layers of a frozen part moved their statistics",
    "trunk.0.bn.running_mean",
    "trunk.2.bn.running_var: moved by up to 0.195 in 4 steps\n8 frozen parameters did not move",
    'frostline.freeze(model, "trunk")',
    Safety.SAFE,
    tuple(f"trunk.{i}.bn.running_{what}" for i in range(3) for what in ("mean", "var")),
    "train.py",
    41,
    0,
    "logits = model(x)",
    "model",
    True,
)
ORPHANS = Finding("O402", Severity.WARNING, "the optimizer holds 2 orphans", "optimizer", remedy="make it later")
LOADED = Finding("M209", Severity.INFO, "train() and eval() differ by loader", "model")


def tensors() -> tuple[TensorLine, ...]:
    found = [
        TensorLine("head.weight", "head", "weight", "train", True),
        TensorLine("aux", "", "weight", "train", False),
    ]
    for i in range(4):
        path, moved = f"trunk.{i}.bn", i < 3
        drift = ((1, 0.1 * (i + 1)), (3, 0.3 * (i + 1))) if moved else ()
        found += [
            TensorLine(f"{path}.weight", path, "norm.weight", "stay", False, why="frozen"),
            TensorLine(
                f"{path}.running_mean",
                path,
                "norm.mean",
                "stay",
                moved,
                "frozen",
                "written by aten.native_batch_norm at train.py:41" if moved else "",
                first_moved=1 if moved else None,
                drift=drift,
                codes=("F107",) if moved else (),
            ),
        ]
    return (*found, TensorLine("free.mask", "free", "buffer", "", True))


MODEL = ModelPart(
    "model",
    "Net",
    tensors(),
    (
        ModuleLine("", "Net", "train"),
        ModuleLine("trunk", "Sequential", "train"),
        *(ModuleLine(f"trunk.{i}.bn", "BatchNorm2d", "train", "it was in eval mode") for i in range(4)),
        ModuleLine("head", "Linear", "train"),
    ),
    ModeTimeline(
        4,
        (Lane("model, all else", 7, "train", ()), Lane("trunk", 5, "eval", (Flip(0.5, "train"),), 4, True)),
        (PassRun(0.5, "train-grad"), PassRun(3.5, "eval")),
        (ModeLine("model.train()", "train.py:37", "train", (0.5,), "0", 5, 2),),
    ),
    ("aux",),
    1,
)
PAGE = DoctorPage(
    title="train.py",
    steps=4,
    cost=0.8,
    seconds=20.0,
    cards=(
        FindingCard(
            MOVED,
            "trunk.0.bn.running_mean",
            "BatchNorm2d",
            "inferred frozen",
            "moved",
            ((40, ""), (41, "    logits = model(x)"), (42, "loss.backward()")),
            ("trunk.[0-2].bn.running_mean (x3)", "trunk.[0-2].bn.running_var (x3)"),
            "safe: it makes happen what was declared",
            in_memory=True,
        ),
        FindingCard(ORPHANS, "optimizer", "SGD"),
        FindingCard(LOADED, "model"),
    ),
    rules=(RuleText("F107", what="Compares.", example="model.train()", safety=Safety.SAFE, how_safe="safe: so"),),
    sound=("9 frozen parameters did not move",),
    checked=("F101", "F107", "O402"),
    missed=("model is compiled",),
    models=(MODEL,),
    optimizers=(
        OptimizerPart(
            "optimizer",
            "SGD",
            4,
            (
                GroupLine(0, (0.1, 0.01), 5e-4, 2, 2, 0, 0),
                GroupLine(1, (0.01, 0.01), None, 3, 0, 2, 1, ("freeze",)),
            ),
            "train.py:28",
            ("CosineAnnealingLR",),
        ),
    ),
    ended="the doctor stopped the script after these steps",
    crash=CrashPart("ValueError", "shapes differ", "train.py:42", "Traceback\n  ...\nValueError: shapes differ"),
    compared=ComparedPart((MOVED,), (ORPHANS,), (), (("errors", 2, 1),)),
    facts=(("Model", "Net"),),
    generator="frostline 0.1.0",
)


class Page(HTMLParser):
    """Every tag with its attributes, in order; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.said.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.said).split())


def hostile() -> DoctorPage:
    finding = replace(
        MOVED,
        message=HOSTILE,
        where=HOSTILE,
        evidence=HOSTILE,
        remedy=HOSTILE,
        paths=(HOSTILE, HOSTILE + "2"),
        file=HOSTILE,
        source=HOSTILE,
        model=HOSTILE,
    )
    rows = tuple(
        TensorLine(
            f"{HOSTILE}.{i}.{name}",
            f"{HOSTILE}.{i}",
            HOSTILE,
            "stay",
            i < 4,
            HOSTILE,
            HOSTILE,
            HOSTILE,
            1,
            ((1, 0.5),) if i < 4 else (),
            ("F107", HOSTILE),
        )
        for i in range(6)
        for name in (HOSTILE, "b")
    )
    lane = Lane(HOSTILE, 3, "train", (Flip(1.5, "eval"),), 1, True)
    modes = ModeTimeline(4, (lane,), (PassRun(0.5, "train"),), (ModeLine(HOSTILE, HOSTILE, "eval", (1.5,), "1", 3),))
    groups = (GroupLine(0, (0.1, 0.1), 0.0, 1, 1, 1, 0, (HOSTILE,)),)
    return DoctorPage(
        title=HOSTILE,
        steps=4,
        cost=0.1,
        seconds=1.0,
        cards=(FindingCard(finding, HOSTILE, HOSTILE, HOSTILE, HOSTILE, ((41, HOSTILE),), (HOSTILE,), HOSTILE),),
        rules=(RuleText("F107", *(HOSTILE,) * 6, how_safe=HOSTILE, false_alarms=HOSTILE, source=HOSTILE),),
        sound=(HOSTILE,),
        checked=(HOSTILE,),
        missed=(HOSTILE,),
        models=(
            ModelPart(HOSTILE, HOSTILE, rows, (ModuleLine(HOSTILE, HOSTILE, "train", HOSTILE),), modes, (HOSTILE,), 1),
        ),
        optimizers=(OptimizerPart(HOSTILE, HOSTILE, 4, groups, HOSTILE, (HOSTILE,)),),
        ended=HOSTILE,
        crash=CrashPart(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        compared=ComparedPart((finding,), (finding,), (finding,), ((HOSTILE, 1, 0),)),
        facts=((HOSTILE, HOSTILE),),
        generator=HOSTILE,
    )


# The page


ALL = ["verdict", "crash", "compared", "findings", "right", "drift", "modes", "optimizers", "modules", "rules"]


@pytest.mark.parametrize(
    ("page", "sections"),
    [(PAGE, ALL), (DoctorPage("train.py", 3, 0.1, 2.0), ["verdict"])],
    ids=["all", "nothing"],
)
def test_the_sections_and_their_links(page: DoctorPage, sections: list[str]) -> None:
    text = render_doctor(page)
    found = Page(text)
    assert text.startswith("<!doctype html>\n")
    assert text.endswith("</html>\n")
    assert [a["id"] for a in found.all("section")] == sections
    links = [a["href"] or "" for a in found.all("a")]
    assert links[: len(sections) + 1] == ["#main", *(f"#{name}" for name in sections)]
    assert len(found.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids), "no link leads nowhere"
    for _, attributes in found.tags:
        assert attributes.get("aria-labelledby") in {None, *ids}


def test_a_finding_is_told_whole() -> None:
    found = Page(render_doctor(PAGE))
    for said in (
        "Error F107 inferred 3 normalization layers of a frozen part moved their statistics",
        "trunk.0.bn.running_mean +5 more BatchNorm2d inferred frozen moved",
        "trunk.2.bn.running_var: moved by up to 0.195 in 4 steps 8 frozen parameters did not move",
        "6 entries of F107 trunk.[0-2].bn.running_mean (x3)",
        "Where train.py:41 40 41 logits = model(x) 42 loss.backward()",
        'Fix safe, in memory frostline.freeze(model, "trunk") Copy Safe: it makes happen what was declared',
        "F107 Parameters are frozen, but normalization statistics still move What it does Compares.",
        "O402 The optimizer holds parameters that the model no longer has",
        "train() and eval() differ by loader",
    ):
        assert said in found.text, said
    assert [a["class"] for a in found.all("article")] == ["finding error", "finding warning", "finding info"]
    hits = [a for a in found.all("span") if a.get("class") == "line hit"]
    assert len(hits) == 1


def test_what_was_audited_and_at_what_cost() -> None:
    text = Page(render_doctor(PAGE)).text
    for said in (
        "1 error and 1 warning in 4 steps of train.py, until it crashed",
        "1 error 1 warning 1 note 1 found right 4 steps audited +0.8 s 4.0% of the time",
        "The doctor stopped the script after these steps.",
        "ValueError: shapes differ train.py:42 Traceback",
        "gone F107 3 normalization layers",
        "still there O402 the optimizer holds 2 orphans",
        "Not looked at Model is compiled",
        "3 rules were asked",
    ):
        assert said in text, said


def test_groups_modes_and_drift_are_told() -> None:
    found = Page(render_doctor(PAGE))
    for said in (
        "optimizer SGD, 4 steps, CosineAnnealingLR; train.py:28 0 0.1 → 0.01 0.0005 2 2 0 0",
        "1 0.01 – 3 0 1 ✗2",
        "Group 1 has freeze, which SGD does not know and ignores.",
        "1 trainable tensor of model is in no optimizer: aux",
        "trunk 5 modules, 4 to stay in eval ✗did not",
        "model.train() train.py:37 train 0 5 2 held back",
        "3 of 8 tensors that were to stay drifted.",
        "0.9 after step 3; first seen after step 1; written by aten.native_batch_norm at train.py:41",
    ):
        assert said in found.text, said
    labels = [a.get("aria-label") for _, a in found.tags if a.get("role") == "img"]
    assert "trunk: eval mode, from step 0 on train mode" in labels
    assert (
        "3 was to stay, moved; 5 was to stay, did not move; 1 trains, moved; 1 trainable, did not move; 1 other"
        in labels
    )


@pytest.mark.parametrize(
    ("page", "tone", "claim"),
    [
        (PAGE, "bad", "1 error and 1 warning"),
        (replace(PAGE, cards=PAGE.cards[1:], crash=None), "warn", "1 warning"),
        (replace(PAGE, cards=PAGE.cards[2:]), "bad", "The loop crashed"),
        (replace(PAGE, cards=PAGE.cards[2:], crash=None), "good", "Nothing wrong was found"),
        (replace(PAGE, cards=(), crash=None, steps=0), "warn", "No optimizer step was seen"),
        (replace(PAGE, cards=(replace(PAGE.cards[0], known=True),), crash=None), "good", "Nothing new was found"),
    ],
)
def test_the_verdict(page: DoctorPage, tone: str, claim: str) -> None:
    verdict = judge(page)
    assert (verdict.tone, verdict.claim) == (tone, claim)
    assert f"{verdict.claim} {verdict.evidence}" in Page(render_doctor(page)).text


def test_what_a_baseline_has_is_told_and_does_not_count() -> None:
    text = Page(render_doctor(replace(PAGE, cards=(replace(PAGE.cards[0], known=True), *PAGE.cards[1:]), gone=2))).text
    assert "0 errors 1 warning" in text
    assert "1 finding more is in the baseline and does not count. 2 findings of the baseline were not found" in text


@pytest.mark.parametrize("page", [PAGE, hostile()], ids=["usual", "hostile"])
def test_nothing_is_loaded_and_only_our_script_runs(page: DoctorPage) -> None:
    text = render_doctor(page)
    found = Page(text)
    for tag, attributes in found.tags:
        for name in LOADING & attributes.keys():
            assert (attributes[name] or "").startswith(("#", "data:,")), (tag, name, attributes[name])
        assert tag not in {"img", "iframe", "object", "embed", "base", "audio", "video", "source"}
        assert not any(name.startswith("on") for name in attributes)
    assert len(found.all("script")) == 1
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert policy.startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert "script-src 'unsafe" not in policy
    assert not {"@import", "http:", "https:"} & {part for part in ("@import", "http:", "https:") if part in text}


def test_hostile_names_stay_text() -> None:
    text = render_doctor(hostile())
    assert "<script>alert" not in text
    assert "onerror=alert(1)>" not in text
    assert "{{ 7*7 }}" in text
    assert HOSTILE in Page(text).said


def test_code_in_a_sentence_is_set_as_code() -> None:
    def told(what: str) -> str:
        return render_doctor(replace(PAGE, rules=(RuleText("F107", what=what),)))

    assert "<dd>A <code>train()</code> undoes <code>&lt;b&gt;</code>.</dd>" in told("a `train()` undoes `<b>`.")
    assert "<dd>One ` alone stays.</dd>" in told("one ` alone stays.")


def test_the_same_page_gives_the_same_bytes() -> None:
    assert render_doctor(PAGE) == render_doctor(PAGE)


# The tree


def everything(node: TreeNode) -> list[TreeNode]:
    return [node, *(below for child in node.children for below in everything(child))]


def test_neighbors_that_are_alike_share_a_row_and_others_do_not() -> None:
    tree = grow_contract_tree(MODEL.tensors, MODEL.modules)
    trunk = next(child for child in tree.children if child.names == ("trunk",))
    assert [(child.name, child.names, child.broken) for child in trunk.children] == [
        ("0 … 2", ("0", "1", "2"), 3),
        ("3", ("3",), 0),
    ]
    (bn,) = trunk.children[0].children
    assert bn.states == {"broken": 3, "held": 3}
    assert [(leaf.names, leaf.state, leaf.count) for leaf in bn.leaves] == [
        (("running_mean",), "broken", 3),
        (("weight",), "held", 3),
    ]
    assert bn.leaves[0].detail.startswith("by up to 0.9, first seen after step 1, written by"), "of the worst of them"
    assert tree.modules == 1 + 1 + 8 + 2


def test_two_that_are_alike_are_two_rows_and_names_that_differ_are_not_folded() -> None:
    def tree(*names: str) -> list[tuple[str, ...]]:
        rows = [TensorLine(f"{name}.w", name, "weight", "train", True) for name in names]
        return [child.names for child in grow_contract_tree(rows).children]

    assert tree("a1", "a2") == [("a1",), ("a2",)]
    assert tree("a1", "a2", "a3", "b4") == [("a1", "a2", "a3"), ("b4",)]
    assert tree("q", "k", "v") == [("q",), ("k",), ("v",)]


def test_a_difference_anywhere_below_keeps_rows_apart() -> None:
    def tree(**change: object) -> int:
        rows = [TensorLine(f"b{i}.x.bn.w", f"b{i}.x.bn", "norm.weight", "stay", False) for i in range(6)]
        rows[4] = replace(rows[4], **change)
        return len(grow_contract_tree(rows).children)

    assert tree() == 1
    assert tree(moved=True) == 3
    assert tree(codes=("F107",)) == 3
    assert tree(meant="train") == 3
    assert tree(drift=((0, 1.0),)) == 1, "how far something moved as it may is no difference"


paths = st.lists(st.sampled_from(["a", "b1", "b2", "b3", "b4", "0", "1", "2"]), min_size=1, max_size=4).map(".".join)
lines = st.builds(
    lambda path, meant, moved, codes: TensorLine(f"{path}.w", path, "weight", meant, moved, codes=codes),
    paths,
    st.sampled_from(["stay", "train", "statistics", ""]),
    st.booleans(),
    st.sampled_from([(), ("F107",)]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(lines, max_size=30, unique_by=lambda line: line.path), st.integers(1, 40))
def test_folding_and_cutting_lose_no_tensor(rows: list[TensorLine], most: int) -> None:
    tree = grow_contract_tree(rows, most=most)
    expected = {state: sum(row.state == state for row in rows) for state in STATES}
    assert tree.states == {state: number for state, number in expected.items() if number}
    nodes = everything(tree)
    assert len(nodes) <= most or most < 1
    shown = sum(leaf.count for node in nodes for leaf in node.leaves)
    assert shown + sum(node.hidden_tensors for node in nodes) == len(rows)
    whole = grow_contract_tree(rows)
    assert tree.modules == sum(node.hidden_modules for node in nodes) + sum(_of_rows(tree))
    if sum(node.marked for node in everything(whole)) <= most:
        marked = sum(node.marked for node in everything(whole))
        assert sum(node.marked for node in nodes) == marked, "what contradicts is cut last"


def _of_rows(node: TreeNode) -> list[int]:
    """How many modules each row stands for by itself."""
    below = sum(child.modules for child in node.children) + node.hidden_modules
    return [node.modules - below, *(number for child in node.children for number in _of_rows(child))]


@pytest.mark.slow
def test_a_hundred_thousand_tensors_stay_a_small_page() -> None:
    def part(alike: bool) -> ModelPart:
        rows = [
            TensorLine(
                path := f"stage{i // 1000}.block{i % 1000}.bn.{name}",
                path.rpartition(".")[0],
                "norm.mean",
                "train" if not alike and (i * i + j) % 3 else "stay",
                moved=not alike and (i * i + j) % 5 == 0,
            )
            for i in range(33_334)
            for j, name in enumerate(("weight", "running_mean", "running_var"))
        ]
        return ModelPart("model", "Net", tuple(rows))

    page = DoctorPage("train.py", 4, 0.1, 1.0, models=(part(alike=True),))
    assert len(render_doctor(page)) < 100_000
    text = render_doctor(replace(page, models=(part(alike=False),)))
    assert len(text) < 4_000_000
    assert re.search(r"[\d,]+ more modules with [\d,]+ tensors are not shown", text)


def test_a_very_deep_tree_and_a_module_with_very_many_tensors() -> None:
    deep = ".".join(f"m{i}" for i in range(400))
    rows = [TensorLine(f"{deep}.w", deep, "weight", "train", True)]
    rows += [TensorLine(f"list.{i}", "list", "weight", "train", i % 2 == 0, why=str(i)) for i in range(500)]
    tree = grow_contract_tree(rows)
    assert max(len(text) for text in re.findall(r"(?:<details)+", render_doctor(page_of(rows)))) < 100
    many = next(child for child in tree.children if child.names == ("list",))
    assert len(many.leaves) + many.hidden_leaves == 500
    assert many.hidden_leaves > 0


def page_of(rows: list[TensorLine]) -> DoctorPage:
    return DoctorPage("train.py", 4, 0.1, 1.0, models=(ModelPart("model", "Net", tuple(rows)),))


# Drift


def drifting(number: int, role: str = "norm.mean", steps: int = 3) -> TensorLine:
    drift = tuple((step, number * step / steps) for step in range(1, steps + 1))
    return TensorLine(f"bn{number}.running_mean", f"bn{number}", role, "stay", True, drift=drift)


def test_the_worst_are_drawn_and_the_others_are_counted() -> None:
    drift = draw_drift([drifting(i) for i in range(1, 16)], steps=3, most=4)
    assert [line.path for line in drift.lines] == [f"bn{i}.running_mean" for i in (15, 14, 13, 12)]
    assert (drift.moved, drift.left_out, drift.steps) == (15, 11, 3)


def test_counters_are_drawn_only_where_there_is_nothing_else() -> None:
    both = draw_drift([drifting(9, "norm.count"), drifting(1)], steps=3)
    assert [line.path for line in both.lines] == ["bn1.running_mean"]
    assert (both.moved, both.counters, both.left_out) == (2, 1, 0)
    alone = draw_drift([drifting(9, "norm.count")], steps=3)
    assert [line.path for line in alone.lines] == ["bn9.running_mean"]
    assert alone.counters == 0


def test_a_line_begins_at_rest_ends_at_the_last_step_and_is_thin() -> None:
    (line,) = draw_drift([replace(drifting(1), drift=((2, 0.5),))], steps=4).lines
    assert line.line == "M0 40.0L500 3.0L1000 3.0"
    (long,) = draw_drift([drifting(1, steps=50_000)], steps=50_000).lines
    assert long.line.count("L") < 300
    (wild,) = draw_drift([replace(drifting(1), drift=((1, 0.5), (2, float("nan")), (3, float("inf"))))], 3).lines
    assert "nan" not in wild.line
    assert "inf" not in wild.line


def test_what_did_not_move_or_may_move_has_no_line() -> None:
    still = replace(drifting(1), moved=False, drift=())
    drift = draw_drift([still, replace(drifting(2), meant="train")], steps=3)
    assert (drift.lines, drift.moved, drift.followed) == ((), 0, 1)
    assert "1 tensor that was to stay did not move." in Page(render_doctor(page_of([still]))).text


# Modes


def test_lanes_fill_their_width() -> None:
    flips = (Flip(0.5, "eval"), Flip(1.5, "train"), Flip(3.0, "eval"))
    drawn = draw_modes(ModeTimeline(4, (Lane("model", 9, "train", flips),)))
    spans = drawn.lanes[0].spans
    assert [(span.left, span.kind) for span in spans] == [
        ("0.00%", "train"),
        ("12.50%", "eval"),
        ("37.50%", "train"),
        ("75.00%", "eval"),
    ]
    assert sum(float(span.width[:-1]) for span in spans) == pytest.approx(100)


def test_very_many_flips_stay_few_spans() -> None:
    flips = tuple(Flip(float(i), "eval" if i % 2 == 0 else "train") for i in range(1, 5_001))
    drawn = draw_modes(ModeTimeline(5_000, (Lane("model", 9, "train", flips),)))
    assert len(drawn.lanes[0].spans) <= 400
    assert drawn.lanes[0].text.endswith("4,994 more changes")
    assert 3 <= len(drawn.ticks) <= 8


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 60, 99, 1_000_000])
def test_ticks_are_round_and_few(steps: int) -> None:
    ticks = [tick for _, tick in draw_modes(ModeTimeline(steps, ())).ticks]
    assert ticks[0] == 0
    assert 2 <= len(ticks) <= 9
    assert len({after - before for before, after in itertools.pairwise(ticks)}) == 1


def test_what_comes_after_the_last_step_has_room() -> None:
    drawn = draw_modes(ModeTimeline(4, (Lane("m", 1, "train", (Flip(4.5, "eval"),)),), (PassRun(4.8, "eval"),)))
    assert [(span.left, span.width) for span in drawn.lanes[0].spans] == [("0.00%", "90.00%"), ("90.00%", "10.00%")]
    assert drawn.passes[0].left == "96.00%"


def test_numbers_that_would_overlap_share_a_place() -> None:
    calls = tuple(ModeLine("m", "", "eval", (at,), "", 1) for at in (10.0, 11.0, 50.0, 97.0, 98.0, 99.0, 99.5))
    drawn = draw_modes(ModeTimeline(100, (), calls=calls))
    assert drawn.marks == (("10.50%", "1, 2"), ("50.00%", "3"), ("98.25%", "4 … 7"))
