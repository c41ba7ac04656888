"""C507: what list.append gives back, which is None, is handed over in the place of the list."""

from __future__ import annotations

import pytest

CODE = "C507"
TRUE = {
    "peft": """
        from peft import LoraConfig
        names = ["score"]
        config = LoraConfig(r=8, modules_to_save=names.append("classifier"))  # <- C507
        """,
    "extend": """
        config = LoraConfig(target_modules=base_targets.extend(["fc1", "fc2"]))  # <- C507
        """,
    "in a dict": """
        options = {"r": 8, "modules_to_save": names.append("head")}  # <- C507
        config = LoraConfig(**options)
        """,
    "assigned and handed over": """
        def configure(names):
            names = names.append("head")  # <- C507
            return LoraConfig(modules_to_save=names)
        """,
    "an attribute by that name": """
        class Args:
            def add(self):
                self.modules_to_save = self.names.append("head")  # <- C507
        """,
    "parameters of an optimizer": """
        import torch
        params = list(body.parameters())
        optimizer = torch.optim.SGD(params.extend(head.parameters()), lr=0.1)  # <- C507
        """,
    "parameters assigned": """
        import torch
        def build(model, head):
            params = list(model.parameters())
            params = params.extend(head.parameters())  # <- C507
            return torch.optim.AdamW(params=params)
        """,
}
SILENT = {
    "a line of its own": """
        names.append("classifier")
        config = LoraConfig(r=8, modules_to_save=names)
        """,
    "a new list": "config = LoraConfig(modules_to_save=[*names, 'classifier'])",
    "numpy": "ids = np.append(ids, 3)\nconfig = LoraConfig(layers_to_transform=np.append(ids, 3))",
    "another option": "plot(rows=rows.append(1))",
    "assigned and not handed over": "nothing = names.append('x')",
    "a data frame": "df = df.append(row)",
    "a lambda": "hook = lambda m, i, o: kept.append(o)\nmodel.register_forward_hook(hook)",
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f(modules_to_save=names.append('head'))", "f(modules_to_save=[*names, 'head'])"),
        ("f(target_modules=a.b.extend(more))", "f(target_modules=[*a.b, *more])"),
        ("f(target_modules=(a or b).append('x'))", "f(target_modules=(a or b).append('x'))"),
        ("f(target_modules=names.insert(0, 'x'))", "f(target_modules=names.insert(0, 'x'))"),
    ],
)
def test_the_fix_hands_over_a_list(before, after, fixed):
    assert fixed(before, CODE) == before
    assert fixed(before, CODE, unsafe=True) == after


def test_what_is_said(find):
    (found,) = find(TRUE["peft"], CODE)
    assert found.finding.message == "modules_to_save gets None: list.append() gives nothing back"
    assert found.finding.evidence == (
        'names.append("classifier") changes the list in place, and is None\n'
        "modules_to_save is None, and nothing but the adapter is saved"
    )
