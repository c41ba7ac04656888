"""Causes before consequences, the worst first, each cause once, and remedies that are done once."""

from __future__ import annotations

from dataclasses import replace

from planted_loops import f107

from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor import Found, all_rules, examine
from frostline.findings import Safety, Severity


def rule(code, *found, explains=(), sound=None):
    return replace(all_rules()[code], look=lambda seen: iter(found), sound=lambda seen: sound, explains=tuple(explains))


def codes(*rules):
    return [finding.code for finding in examine(Seen(), rules=rules)]


def test_the_worst_come_first_and_what_explains_more_before_its_equals():
    note = rule("F101", Found("a note", severity=Severity.INFO))
    error = rule("F102", Found("an error"))
    warning = rule("F105", Found("a warning", severity=Severity.WARNING))
    assert codes(note, error, warning) == ["F102", "F105", "F101"]
    other = rule("F106", Found("another error", paths=("b",)))
    cause = rule("F103", Found("a cause", paths=("a",)), explains=("F108",))
    consequence = rule("F108", Found("a consequence", paths=("a.weight",)))
    assert codes(other, consequence, cause) == ["F103", "F106"]


def test_a_consequence_is_dropped_only_where_its_paths_are_covered():
    cause = rule("M203", Found("undone", model="net", paths=("trunk",)), explains=("F107",))
    for paths, left in ((("trunk.1.running_mean",), False), (("trunk2.running_mean",), True), ((), False)):
        consequence = rule("F107", Found("moved", model="net", paths=paths))
        assert ("F107" in codes(cause, consequence)) is left
    elsewhere = rule("F107", Found("moved", model="other", paths=("trunk.1.running_mean",)))
    assert "F107" in codes(cause, elsewhere)


def test_what_was_found_right_is_said_once_and_not_by_a_rule_that_found_something():
    found = examine(
        Seen(),
        rules=[
            rule("F101", Found("wrong"), sound="never said"),
            rule("F102", sound="all is well"),
            rule("F103", sound="all is well"),
            rule("F104"),
        ],
    )
    assert found.sound == ["all is well"]
    assert found.checked == ["F101", "F102", "F103", "F104"]


def test_a_rule_that_fails_is_named_and_hides_nothing():
    def broken(seen):
        raise ZeroDivisionError("nobody thought of it")
        yield

    seen = Seen()
    found = examine(seen, rules=[replace(rule("F101"), look=broken), rule("F102", Found("wrong"))])
    assert [f.code for f in found] == ["F102"]
    assert seen.missed == [
        "rule F101 failed (ZeroDivisionError: nobody thought of it): what it looks for was not judged"
    ]


def test_remedies_that_are_not_safe_are_never_done_and_safe_ones_once():
    done = []

    def mend():
        done.append(1)
        return "mended"

    safe = Found("safe", safety=Safety.SAFE, repair=mend)
    unsafe = Found("unsafe", safety=Safety.UNSAFE, repair=mend)
    found = examine(Seen(), rules=[rule("F101", safe), rule("F102", unsafe)])
    assert [f.code for f in found.repairable] == ["F101"]
    assert found.apply() == ["F101: mended"]
    assert found.apply() == []
    assert done == [1]


def test_ids_survive_an_edit_further_up_and_tell_places_apart(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("loss = model(x)\nloss = model(y)\n")
    first, second = Place(str(path), 1), Place(str(path), 2)
    one, two = (examine(Seen(), rules=[rule("F101", Found("m", place=place))])[0] for place in (first, second))
    assert one.id != two.id
    assert replace(one, line=7, message="with another figure").id == one.id


def test_an_examination_says_itself_in_text_json_and_a_notebook():
    found = examine(f107.failing())
    assert str(found).startswith("4 steps, 4 forward passes looked at: 1 error; ")
    assert found._repr_html_().startswith("<pre>4 steps")
    told = found.to_json()
    assert [row["code"] for row in told["findings"]] == ["F107"]
    assert told["findings"][0]["repairable"] is True
    assert told["models"] == [{"name": "model", "type": "Sequential", "tensors": 16}]
    assert (told["steps"], told["ended"], told["missed"], told["crash"]) == (4, "finished", [], None)
