"""F115: a filter by name matches everything or nothing."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "F115"
LOOP = "for name, p in model.named_parameters():\n    if {test}:{mark}\n        p.requires_grad = False\n"
MARK = "  # <- F115"
TESTS = [
    "'bn' or 'norm' in name",
    "'bn' in name or 'norm'",
    "name == 'fc.weight' or 'fc.bias'",
    "name != 'fc.weight' or name != 'fc.bias'",
    "name is not 'fc.weight' or name is not 'fc.bias'",
    "name is 'fc.weight'",
    "name is not 'fc.weight'",
    "not name.startswith('fc') or not name.startswith('head')",
    "name.startswith('fc') and name.startswith('head')",
    "name.endswith('weight') and name.endswith('bias')",
    "name == 'a' and name == 'b'",
    "name.startswith('bn' ) or 'norm'",
    "not ('bn' or 'norm' in name)",
    "p.ndim == 1 and ('bn' or 'norm' in name)",
    "name.split('.')[0] != 'fc' or name.split('.')[0] != 'head'",
    "name.find('fc')",
    "name.startswith('')",
    "'' in name",
    "name in ['fc.weight'] or ['fc.bias']",
]
TRUE = {
    **{test: LOOP.format(test=test, mark=MARK) for test in TESTS},
    "a comprehension": "ps = [p for n, p in net.named_parameters() if 'bias' or 'norm' in n]  # <- F115\n",
    "a filter": "ps = filter(lambda item: 'bn' or 'norm' in item[0], net.named_parameters())  # <- F115\n",
    "counted, in a method": """
        import lightning as L
        class Lit(L.LightningModule):
            def configure_optimizers(self):
                for i, (n, m) in enumerate(self.net.named_modules()):
                    if n != "head" or n != "fc":  # <- F115
                        m.requires_grad_(False)
        """,
    "a state dict": """
        state = {k: v for k, v in ckpt.state_dict().items() if "fc" or "head" in k}  # <- F115
        """,
    "a state dict by name": """
        def strip(state_dict):
            for k in list(state_dict.keys()):
                if not k.startswith("a.") or not k.startswith("b."):  # <- F115
                    del state_dict[k]
        """,
    "a branch": """
        for n, p in model.named_parameters():
            if p.ndim < 2:
                decay.append(p)
            elif "bias" or "norm" in n:  # <- F115
                no_decay.append(p)
        """,
    "chosen": "groups = [0 if 'bn' or 'norm' in n else 1 for n, p in model.named_parameters()]  # <- F115\n",
}
SILENT = {
    "each part": LOOP.format(test="'bn' in name or 'norm' in name", mark=""),
    "neither": LOOP.format(test="name != 'fc.weight' and name != 'fc.bias'", mark=""),
    "any": LOOP.format(test="any(part in name for part in ('bn', 'norm'))", mark=""),
    "one other": LOOP.format(test="name != 'fc.weight' or p.ndim == 1", mark=""),
    "may hold both": LOOP.format(test="'bn' not in name or 'bias' not in name", mark=""),
    "one prefix in another": LOOP.format(test="name.startswith('layer') and name.startswith('layer4')", mark=""),
    "beginning and end": LOOP.format(test="name.startswith('fc') and name.endswith('bias')", mark=""),
    "find, compared": LOOP.format(test="name.find('fc') != -1", mark=""),
    "begins so": LOOP.format(test="not name.find('fc')", mark=""),
    "found in a tuple": LOOP.format(test="name.startswith(('bn', 'norm'))", mark=""),
    "a default": "for name, p in model.named_parameters():\n    label = name or 'model'\n",
    "no loop over names": "if 'bn' or 'norm' in args.freeze:\n    print(1)\n",
    "another loop": "for word in words:\n    if word != 'a' or word != 'b':\n        print(word)\n",
    "values": "for v in state_dict.values():\n    if v is 'a' or v != 'b':\n        print(v)\n",
    "two names": """
        for (a, p), (b, q) in zip(one.named_parameters(), two.named_parameters()):
            if a != "fc" or b != "head":
                print(a, b)
        """,
    "identity of None": LOOP.format(test="name is not None", mark=""),
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_what_is_said(find):
    (found,) = find(LOOP.format(test="'bn' or 'norm' in name", mark=""), CODE)
    assert found.finding.severity is Severity.ERROR
    assert found.finding.message == "'bn' or 'norm' in name is always true: every name matches"
    assert found.finding.evidence == "'bn' alone is true: `or` binds weaker than `in` and `==`"
    assert found.finding.remedy == "'bn' in name or 'norm' in name"
    (other,) = find(LOOP.format(test="name.endswith('weight') and name.endswith('bias')", mark=""), CODE)
    assert other.finding.message == (
        "name.endswith('weight') and name.endswith('bias') is always false: no name matches"
    )
    assert other.finding.evidence == "ending with 'weight' and ending with 'bias' cannot both be so at once"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("'bn' or 'norm' in name", "'bn' in name or 'norm' in name"),
        ("'bn' in name or 'norm'", "'bn' in name or 'norm' in name"),
        ("'a' or 'b' or 'c' in name.lower()", "'a' in name.lower() or 'b' in name.lower() or 'c' in name.lower()"),
        ("name == 'a' or 'b'", "name == 'a' or name == 'b'"),
        ("name.startswith('a') or 'b'", "name.startswith('a') or name.startswith('b')"),
        ("name != 'a' or name != 'b'", "name != 'a' and name != 'b'"),
        ("name is not 'a' or name is not 'b'", "name != 'a' and name != 'b'"),
        ("name.startswith('a') and name.startswith('b')", "name.startswith('a') or name.startswith('b')"),
        ("name is 'fc.weight'", "name == 'fc.weight'"),
        ("p.ndim == 1 and (name != 'a' or name != 'b')", "p.ndim == 1 and (name != 'a' and name != 'b')"),
    ],
)
def test_the_fix(before, after, fixed):
    assert fixed(LOOP.format(test=before, mark=""), CODE) == LOOP.format(test=after, mark="")


def test_find_is_mended_when_asked_for(fixed):
    text = LOOP.format(test="name.find('fc')", mark="")
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == LOOP.format(test="'fc' in name", mark="")


@pytest.mark.parametrize(
    "test",
    ["'bn' or 'norm' not in name", "'bn' in name or 'x' == name or 'norm'", "'' in name", "name in ['a'] or ['b']"],
)
def test_what_was_meant_is_not_guessed(test, find):
    (found,) = find(LOOP.format(test=test, mark=""), CODE)
    assert found.fix is None


def test_a_name_without_a_dot_may_be_the_same_object(find):
    (found,) = find(LOOP.format(test="name is 'weight'", mark=""), CODE)
    assert found.finding.severity is Severity.WARNING
    assert found.finding.message == "name is 'weight' is nearly always false: no name matches"
