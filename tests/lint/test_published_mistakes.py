"""The mistakes of published code that the nine scenarios tell of, in files as a user would have typed them.

Each test names the findings of its file, all of them, by code and line.
"""

from __future__ import annotations

import textwrap

import pytest

from frostline.lint.diagnostic import Diagnostic
from frostline.lint.engine import lint
from frostline.lint.source import Source, source_from_bytes

FILES = {
    "S1 two heads on one trunk": """
        import torch
        import torch.nn as nn
        from torchvision import models

        class TwoHeads(nn.Module):
            def __init__(self):
                super(TwoHeads, self).__init__()
                resnet = models.resnet18(pretrained=True)
                self.trunk = nn.Sequential(*list(resnet.children())[:-1])
                self.fc1 = nn.Linear(512, 10)
                self.fc2 = nn.Linear(512, 2)

            def forward(self, x):
                f = self.trunk(x).flatten(1)
                return self.fc1(f), self.fc2(f)

        net = TwoHeads()
        net.load_state_dict(torch.load("pretrained.pth"))
        for param in net.trunk.parameters():
            param.requires_grad = False  # <- F107
        for param in net.fc2.parameters():
            param.requires_grad = False

        criterion = nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(net.fc1.parameters(), lr=0.01, momentum=0.9)
        for epoch in range(10):
            net.train()
            for images, labels in train_loader:
                optimizer.zero_grad()
                out1, _ = net(images)
                loss = criterion(out1, labels)
                loss.backward()
                optimizer.step()
        """,
    "S2 the frozen net that changes": """
        import torch
        from torchvision.models import resnet18

        net = resnet18(pretrained=True)
        net.requires_grad_(False)  # <- F107
        for epoch in range(2):
            net.train()
            net(train_x)
            net.eval()
            print(net(test_x).sum())
        """,
    "S4 a misspelt flag": """
        import torch.optim as optim
        from torch import nn
        from torchvision import models

        net = models.resnet18(pretrained=True)
        for params in net.parameters():
            params.require_grad = False  # <- F101
        net.fc = nn.Linear(512, 2)
        optimizer = optim.SGD(net.fc.parameters(), lr=1e-3)
        """,
    "S4 a misspelt method": """
        from torchvision import models

        net = models.resnet18(pretrained=True)
        for name, param in net.name_parameters():  # <- H604
            if "fc" not in name:
                param.requires_grad = False
        """,
    "S4 filter before freezing": """
        import torch
        from torchvision import models

        model = models.resnet50(weights="DEFAULT")
        params = list(filter(lambda p: p.requires_grad, model.parameters()))
        optimizer = torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)  # <- O403
        for p in model.layer1.parameters():
            p.requires_grad = False
        model.layer1.eval()
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        """,
    "S5 strict=False": """
        import torch
        from torchvision import models

        model = models.resnet50()
        checkpoint = torch.load("moco.pth", map_location="cpu")
        state = {k.replace("module.encoder_q.", ""): v for k, v in checkpoint["state_dict"].items()}
        model.load_state_dict(state, strict=False)  # <- C501
        """,
    "S5 update and load back": """
        import torch
        from models import Net

        net = Net()
        pretrained_dict = torch.load("backbone.pth")["model"]
        model_dict = net.state_dict()
        pretrained_dict = {k: v for k, v in pretrained_dict.items() if k in model_dict}
        model_dict.update(pretrained_dict)
        net.load_state_dict(model_dict)  # <- C501
        """,
    "S6 meta-test in train mode": """
        import higher
        import torch
        import torch.nn.functional as F

        def test(db, net, device, epoch, log):
            net.train()  # <- T701
            n_test_iter = db.x_test.shape[0] // db.batchsz
            qry_losses, qry_accs = [], []
            for batch_idx in range(n_test_iter):
                x_spt, y_spt, x_qry, y_qry = db.next('test')
                inner_opt = torch.optim.SGD(net.parameters(), lr=1e-1)
                for i in range(x_spt.size(0)):
                    with higher.innerloop_ctx(net, inner_opt, track_higher_grads=False) as (fnet, diffopt):
                        for _ in range(5):
                            spt_loss = F.cross_entropy(fnet(x_spt[i]), y_spt[i])
                            diffopt.step(spt_loss)
                        qry_logits = fnet(x_qry[i]).detach()
                        qry_losses.append(F.cross_entropy(qry_logits, y_qry[i], reduction='none'))
                        qry_accs.append((qry_logits.argmax(dim=1) == y_qry[i]).detach())
        """,
    "S7 statistics switched off": """
        import torch.nn as nn
        from torchvision import models

        model = models.resnet18(pretrained=True)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats = False  # <- N302
        """,
    "S9 accumulation": """
        import torch

        model = Net()
        optimizer = torch.optim.Adam(model.parameters())
        accumulation = 4
        for index, (inputs, targets) in enumerate(train_loader):
            outputs = model(inputs)
            loss = criterion(inputs, targets) / accumulation  # <- O414
            loss.backward()
            if index % accumulation == 0:  # <- O408
                optimizer.step()
                optimizer.zero_grad()
        """,
}


def findings(text: str) -> list[Diagnostic]:
    source = source_from_bytes(textwrap.dedent(text).encode(), "train.py")
    assert isinstance(source, Source)
    found, failure = lint(source)
    assert failure is None
    return found


@pytest.mark.parametrize("name", FILES)
def test_each_mistake_is_found_at_its_line(name):
    text = textwrap.dedent(FILES[name])
    wanted = {
        (line.rpartition("# <- ")[2].strip(), number)
        for number, line in enumerate(text.splitlines(), start=1)
        if "# <- " in line
    }
    found = {(each.finding.code, each.finding.line) for each in findings(text)}
    assert wanted <= found
    beside = {code for code, _ in found - wanted}
    # What else is said of these files is true too: the fix of one mistake is where another begins.
    assert beside <= BESIDE.get(name, set()), [str(each.finding) for each in findings(text)]


BESIDE: dict[str, set[str]] = {}
