"""N301: normalization layers of one kind were put into eval mode, those of another kind were missed."""

from __future__ import annotations

import pytest

from frostline.findings import Severity

CODE = "N301"
LOOP = "from torch import nn\nfor m in model.modules():\n    if {test}:{mark}\n        {body}\n"
MARK = "  # <- N301"
TESTS = [
    "isinstance(m, nn.BatchNorm2d)",
    "isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))",
    "isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)",
    "type(m) == nn.BatchNorm2d",
    "type(m) in (nn.BatchNorm1d, nn.BatchNorm2d)",
    "m.__class__ is nn.BatchNorm2d",
    "m.__class__.__name__ == 'BatchNorm2d'",
    "'BatchNorm2d' in str(m)",
    "m.__class__.__name__.find('BatchNorm2d') != -1",
    "isinstance(m, nn.BatchNorm2d) and m.affine",
]
BODIES = [
    "m.eval()",
    "m.train(False)",
    "m.requires_grad_(False)",
    "m.weight.requires_grad = False",
    "m.bias.requires_grad_(False)",
    "m.training = False",
    "for p in m.parameters(): p.requires_grad = False",
]
TRUE = {
    **{test: LOOP.format(test=test, mark=MARK, body="m.eval()") for test in TESTS},
    **{body: LOOP.format(test=TESTS[0], mark=MARK, body=body) for body in BODIES},
    "applied": """
        import torch.nn as nn
        def set_bn_eval(m):
            if isinstance(m, nn.BatchNorm2d):  # <- N301
                m.eval()
        model.apply(set_bn_eval)
        """,
    "a text that was kept": """
        def fix_bn(m):
            classname = m.__class__.__name__
            if classname.find('BatchNorm2d') != -1:  # <- N301
                m.eval()
        """,
    "others are skipped": """
        from torch import nn
        for m in net.modules():
            if not isinstance(m, nn.BatchNorm2d):  # <- N301
                continue
            m.eval()
        """,
    "a comprehension": """
        from torch.nn import BatchNorm2d
        [m.eval() for m in net.modules() if isinstance(m, BatchNorm2d)]  # <- N301
        """,
    "chosen first": """
        import torch
        norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # <- N301
        for norm in norms:
            norm.eval()
        """,
    "in train": """
        from torch import nn
        class Net(nn.Module):
            def train(self, mode=True):
                super().train(mode)
                for m in self.modules():
                    if isinstance(m, nn.BatchNorm2d):  # <- N301
                        m.eval()
                return self
        """,
}
SILENT = {
    "all of them": LOOP.format(test="isinstance(m, nn.modules.batchnorm._BatchNorm)", mark="", body="m.eval()"),
    "each by name": LOOP.format(
        test="isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm))",
        mark="",
        body="m.eval()",
    ),
    "one after the other": """
        from torch import nn
        for m in net.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.eval()
            elif isinstance(m, nn.BatchNorm2d):
                m.eval()
            elif isinstance(m, (nn.BatchNorm3d, nn.SyncBatchNorm)):
                m.eval()
        """,
    "initialization": LOOP.format(test=TESTS[0], mark="", body="nn.init.constant_(m.weight, 1)"),
    "initialization, by name": LOOP.format(test=TESTS[6], mark="", body="m.weight.data.fill_(1)"),
    "counted": LOOP.format(test=TESTS[0], mark="", body="count += 1"),
    "momentum": LOOP.format(test=TESTS[0], mark="", body="m.momentum = 0.01"),
    "trained": LOOP.format(test=TESTS[0], mark="", body="m.train()"),
    "all but": LOOP.format(test="not isinstance(m, nn.BatchNorm2d)", mark="", body="m.requires_grad_(False)"),
    "in the other branch": LOOP.format(test=TESTS[0], mark="", body="pass\n    else:\n        m.eval()"),
    "another layer": LOOP.format(test="isinstance(m, nn.Dropout2d)", mark="", body="m.eval()"),
    "found nowhere": LOOP.format(test="m.__class__.__name__.find('BatchNorm2d') == -1", mark="", body="m.eval()"),
    "any batch norm by text": LOOP.format(test="'BatchNorm' in type(m).__name__", mark="", body="m.eval()"),
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_it_is_a_warning_where_no_other_kind_is_in_sight(find):
    (found,) = find(LOOP.format(test=TESTS[0], mark="", body="m.eval()"), CODE)
    assert (found.finding.severity, found.finding.inferred) == (Severity.WARNING, True)
    assert (
        found.finding.message == "only BatchNorm2d is frozen here: BatchNorm1d, BatchNorm3d, SyncBatchNorm are missed"
    )
    assert found.finding.remedy == "nn.modules.batchnorm._BatchNorm"


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("net.bn = nn.BatchNorm1d(8)", "BatchNorm1d"),
        ("net = nn.SyncBatchNorm.convert_sync_batchnorm(net)", "SyncBatchNorm"),
    ],
)
def test_it_is_an_error_where_another_kind_is_made(made, kind, find):
    (found,) = find(f"{LOOP.format(test=TESTS[0], mark='', body='m.eval()')}{made}\n", CODE)
    assert (found.finding.severity, found.finding.inferred) == (Severity.ERROR, False)
    assert found.finding.message == f"only BatchNorm2d is frozen here: {kind} is missed"
    assert found.finding.evidence == f"the file uses {kind}"


def test_only_the_synchronized_kind_missing_is_a_note(find):
    test = "isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))"
    (found,) = find(LOOP.format(test=test, mark="", body="m.eval()"), CODE)
    assert found.finding.severity is Severity.INFO


@pytest.mark.parametrize(
    ("imported", "before", "after"),
    [
        ("from torch import nn", "isinstance(m, nn.BatchNorm2d)", "isinstance(m, nn.modules.batchnorm._BatchNorm)"),
        (
            "import torch",
            "isinstance(m, torch.nn.BatchNorm2d)",
            "isinstance(m, torch.nn.modules.batchnorm._BatchNorm)",
        ),
        (
            "import torch\nfrom torch.nn import BatchNorm2d",
            "isinstance(m, BatchNorm2d)",
            "isinstance(m, torch.nn.modules.batchnorm._BatchNorm)",
        ),
        (
            "from torch import nn",
            "isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))",
            "isinstance(m, nn.modules.batchnorm._BatchNorm)",
        ),
        (
            "from torch import nn",
            "isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))",
            "isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm))",
        ),
        ("from torch import nn", "type(m) == nn.BatchNorm2d", "isinstance(m, nn.modules.batchnorm._BatchNorm)"),
    ],
)
def test_the_fix_is_spelled_as_the_file_imports(imported, before, after, fixed):
    text = f"{imported}\nfor m in net.modules():\n    if {{}}:\n        m.eval()\n"
    assert fixed(text.format(before), CODE) == text.format(after)


def test_there_is_none_where_no_import_reaches_it(find):
    text = (
        "from torch.nn import BatchNorm2d as B\nfor m in net.modules():\n    if isinstance(m, B):\n        m.eval()\n"
    )
    (found,) = find(text, CODE)
    assert found.fix is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("m.__class__.__name__.find('BatchNorm2d') != -1", "m.__class__.__name__.find('BatchNorm') != -1"),
        ('"BatchNorm2d" in str(m)', '"BatchNorm" in str(m)'),
    ],
)
def test_texts_are_mended_when_asked_for(before, after, fixed):
    text = LOOP.format(test=before, mark="", body="m.eval()")
    assert fixed(text, CODE) == text
    assert fixed(text, CODE, unsafe=True) == LOOP.format(test=after, mark="", body="m.eval()")
