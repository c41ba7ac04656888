"""``frostline groups``: the table, JSON and refusals."""

from __future__ import annotations

import json
from typing import Any


def test_the_table_has_each_layer_once(command: Any, factory: str):
    done = command("groups", f"{factory}:Net", "--head", "out", "--head-lr", "0.01", "--layer-decay", "0.5")
    assert (done.code, done.err) == (0, "")
    head, rule, *rows, last = done.out.splitlines()
    assert head.split() == ["group", "depth", "rate", "decay", "tensors", "elements", "frozen"]
    assert set(rule) == {"─", " "}
    rates = {row.split()[0] if row.startswith("head") else " ".join(row.split()[:2]): row.split() for row in rows}
    assert rates["head"][2] == "0.01"
    assert [row.split()[3] for row in rows if row.startswith("layer")] == ["0.00025", "0.0005"]
    assert last.startswith("3 groups, 8 tensors, depth by ")


def test_frozen_parts_keep_their_place(command: Any, factory: str):
    done = command("groups", f"{factory}:Net", "--head", "out", "--freeze", "stem", "--freeze", "norm", "--json")
    data = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert data["schema_version"] == 1
    trunk, head = data["groups"]
    assert (trunk["name"], trunk["frozen"], len(trunk["param_names"])) == ("trunk", 4, 6)
    assert (head["name"], head["frozen"]) == ("head", 0)


def test_what_cannot_be(command: Any, factory: str):
    for options, said in (
        (
            ["--head", "classifier"],
            "--head classifier: the model has no part of that name\n  fix: one of the Linear layers: out",
        ),
        (["--head", ""], "--head '': an empty selector\n  fix: leave --head out, or name a part"),
        (["--freeze", ""], "--freeze '': an empty selector\n  fix: leave --freeze out, or name a part"),
        (["--freeze", "stem", "--freeze", " "], "--freeze ' ': an empty selector"),
        (["--freeze", "!"], "--freeze '!': an empty selector"),
        (["--freeze", "stem", "norm"], "did you mean: frostline groups --freeze stem --freeze norm"),
        (["--freeze", "!sten"], "fix: use '!stem' as the selector"),
        (["--lr", "-1"], "param_groups(lr=-1.0): expected a finite number"),
        (["--lr", "nan"], "param_groups(lr=nan)"),
        (["--layer-decay", "2"], "expected 0 < factor <= 1"),
        (["--head-lr", "0.1"], "does not say which part is its head"),
    ):
        done = command("groups", f"{factory}:Net", *options)
        assert (done.code, done.out) == (2, ""), options
        assert said in done.err
        assert "Traceback" not in done.err
