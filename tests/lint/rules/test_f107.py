"""F107: parameters are frozen, but normalization statistics still move."""

from __future__ import annotations

from pathlib import Path

import pytest

CODE = "F107"
HELPERS = """
    from torch import nn
    def freeze(m):
        for p in m.parameters():
            p.requires_grad = False
    def set_bn_eval(m):
        for each in m.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.eval()
    """
BY_NAME = """
import timm, torch
model = timm.create_model("resnet10t", num_classes=3)
for n, p in model.named_parameters():
    p.requires_grad = "fc" in n
optimizer = torch.optim.AdamW(model.fc.parameters())
for epoch in range(2):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
"""
SET = 'p.requires_grad = "fc" in n'
TRUE = {
    "the flag is a test on the name": BY_NAME.replace(SET, f"{SET}  # <- F107"),
    "the flag is given one": BY_NAME.replace(SET, 'p.requires_grad_(n.startswith(("fc", "head")))  # <- F107'),
    "tutorial": """
        import torch
        import torchvision
        from torch import nn, optim
        def train_model(model, criterion, optimizer, num_epochs=25):
            for epoch in range(num_epochs):
                for phase in ['train', 'val']:
                    if phase == 'train':
                        model.train()
                    else:
                        model.eval()
                    for inputs, labels in dataloaders[phase]:
                        optimizer.zero_grad()
                        with torch.set_grad_enabled(phase == 'train'):
                            loss = criterion(model(inputs), labels)
                            if phase == 'train':
                                loss.backward()
                                optimizer.step()
            return model
        model_conv = torchvision.models.resnet18(weights='IMAGENET1K_V1')
        for param in model_conv.parameters():
            param.requires_grad = False  # <- F107
        model_conv.fc = nn.Linear(512, 2)
        model_conv = model_conv.to(device)
        optimizer_conv = optim.SGD(model_conv.fc.parameters(), lr=0.001)
        train_model(model_conv, nn.CrossEntropyLoss(), optimizer_conv)
        """,
    "two heads on one trunk": """
        import torch
        from torch import nn
        from torchvision.models import resnet18
        class TwoHeads(nn.Module):
            def __init__(self):
                super().__init__()
                self.trunk = resnet18()
                self.head1 = nn.Linear(1000, 10)
                self.head2 = nn.Linear(1000, 10)
        model = TwoHeads()
        model.trunk.requires_grad_(False)  # <- F107
        model.head2.requires_grad_(False)
        optimizer = torch.optim.SGD(model.head1.parameters(), lr=0.1)
        for epoch in range(5):
            model.train()
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                model(test_x)
        """,
    "no optimizer at all": """
        import torchvision
        net = torchvision.models.resnet18()
        net.requires_grad_(False)  # <- F107
        for epoch in range(2):
            net.train()
            net(train_x)
            net.eval()
            out = net(test_x)
        """,
    "eval before train": """
        def fit(model, loader, optimizer):
            for p in model.backbone.parameters():
                p.requires_grad = False  # <- F107
            model.backbone.eval()
            for epoch in range(10):
                model.train()
                for x, y in loader:
                    loss = model(x, y)
                    loss.backward()
                    optimizer.step()
        """,
    "flag of a helper": """
        import torch
        from torchvision import models
        def set_parameter_requires_grad(model, feature_extracting):
            if feature_extracting:
                for param in model.parameters():
                    param.requires_grad = False  # <- F107
        def initialize(num_classes):
            model_ft = models.densenet121(pretrained=True)
            set_parameter_requires_grad(model_ft, True)
            model_ft.classifier = torch.nn.Linear(1024, num_classes)
            return model_ft
        model_ft = initialize(2)
        model_ft.train()
        optimizer = torch.optim.Adam(model_ft.classifier.parameters())
        for x, y in loader:
            criterion(model_ft(x), y).backward()
            optimizer.step()
        """,
    "lightning": """
        import lightning as L
        from torch import nn
        from torchvision.models import resnet50
        class Classifier(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = resnet50(weights="DEFAULT")
                self.backbone.requires_grad_(False)  # <- F107
                self.head = nn.Linear(1000, 10)
            def training_step(self, batch, batch_idx):
                x, y = batch
                return nn.functional.cross_entropy(self.head(self.backbone(x)), y)
        """,
    "trainer": """
        import torch
        class Trainer:
            def __init__(self, model, loader):
                self.model = model
                self.loader = loader
                for p in self.model.encoder.parameters():
                    p.requires_grad_(False)  # <- F107
                self.optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
            def fit(self, epochs):
                for epoch in range(epochs):
                    self._epoch()
            def _epoch(self):
                self.model.train()
                for batch in self.loader:
                    self.optimizer.zero_grad()
                    self.model(batch).backward()
                    self.optimizer.step()
        """,
    "made in train mode": """
        import torch, timm
        backbone = timm.create_model("resnet50", pretrained=True, num_classes=0)
        for p in backbone.parameters():
            p.requires_grad = False  # <- F107
        head = torch.nn.Linear(2048, 10)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        for x, y in loader:
            optimizer.zero_grad()
            criterion(head(backbone(x)), y).backward()
            optimizer.step()
        """,
    "without gradients": """
        import torch, timm
        backbone = timm.create_model("resnet50", pretrained=True)
        head = torch.nn.Linear(1000, 10)
        backbone.requires_grad_(False)  # <- F107
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        backbone.train()
        for x, y in loader:
            with torch.no_grad():
                features = backbone(x)
            criterion(head(features), y).backward()
            optimizer.step()
        """,
    "all but the head": """
        import torchvision
        model = torchvision.models.resnet50(weights="DEFAULT")
        for name, p in model.named_parameters():
            if not name.startswith("fc"):
                p.requires_grad = False  # <- F107
        model.train()
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
        """,
    "a list of parts": """
        import torchvision
        model = torchvision.models.resnet50(weights="DEFAULT")
        for part in [model.conv1, model.bn1, model.layer1]:
            for p in part.parameters():
                p.requires_grad = False  # <- F107
        model.train()
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
        """,
    "wrapped": """
        import torchvision
        from torch.nn.parallel import DistributedDataParallel
        net = torchvision.models.resnet50(weights="DEFAULT")
        net.layer1.requires_grad_(False)  # <- F107
        ddp = DistributedDataParallel(net)
        ddp.train()
        for x, y in loader:
            criterion(ddp(x), y).backward()
            optimizer.step()
        """,
    "wrapped under its own name": """
        import torch
        import torchvision
        model = torchvision.models.resnet18().cuda()
        for p in model.parameters():
            p.requires_grad = False  # <- F107
        model.fc = torch.nn.Linear(512, 3)
        model = torch.nn.DataParallel(model)
        for epoch in range(3):
            model.train()
            for x, y in loader:
                criterion(model(x), y).backward()
                optimizer.step()
        """,
    "a method that freezes": """
        from torch import nn
        class Net(nn.Module):
            def __init__(self, backbone):
                super().__init__()
                self.features = backbone
                self.head = nn.Linear(8, 2)
            def freeze_backbone(self):
                for p in self.features.parameters():
                    p.requires_grad = False  # <- F107
        def epoch(net, loader, optimizer):
            net.train()
            for x, y in loader:
                net(x, y).backward()
                optimizer.step()
        def main(backbone, loader, optimizer):
            model = Net(backbone).cuda()
            model.freeze_backbone()
            epoch(model, loader, optimizer)
        """,
    "in one breath": """
        import lightning as L
        from torchvision.models import resnet50
        class Classifier(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = resnet50(weights="DEFAULT").requires_grad_(False)  # <- F107
            def training_step(self, batch, batch_idx):
                return self.backbone(batch).mean()
        """,
    "own net": """
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
                self.fc = nn.Linear(8, 2)
        net = Net()
        net.stem.requires_grad_(False)  # <- F107
        net.train()
        for x, y in loader:
            criterion(net(x), y).backward()
            opt.step()
        """,
}
WITH_FILES = {
    "helper of another file": """
        from helpers import freeze
        def main(model, loader, optimizer):
            freeze(model.backbone)  # <- F107
            model.train()
            for x, y in loader:
                model(x, y).backward()
                optimizer.step()
        """,
    "class of another file": """
        from nets import Net
        net = Net()
        net.trunk.requires_grad_(False)  # <- F107
        net.train()
        for x, y in loader:
            net(x, y).backward()
            optimizer.step()
        """,
}
NETS = """
    from torch import nn
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(width, width, 3)
            self.{layer}
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = Block(8)
            self.head = nn.Linear(8, 2)
    """
SILENT = {
    "the flag is a test on the name, and eval() follows": BY_NAME.replace(
        "model.train()", "model.train()\n    model.eval()"
    ),
    "the flag is a test that leaves one name out": BY_NAME.replace(SET, 'p.requires_grad = "fc" not in n'),
    "the flag is a test on norms": BY_NAME.replace(SET, 'p.requires_grad = "bn" in n'),
    "the flag is no test on the name": BY_NAME.replace(SET, 'p.requires_grad = mode == "full"'),
    "the flag is a value": BY_NAME.replace(SET, "p.requires_grad = trains"),
    "eval after train": """
        def fit(model, loader, optimizer):
            for p in model.backbone.parameters():
                p.requires_grad = False
            for epoch in range(10):
                model.train()
                model.backbone.eval()
                for x, y in loader:
                    model(x, y).backward()
                    optimizer.step()
        """,
    "eval of the layers": """
        import torch
        def train(model, loader, optimizer):
            for p in model.backbone.parameters():
                p.requires_grad = False
            model.train()
            for m in model.backbone.modules():
                if isinstance(m, torch.nn.BatchNorm2d):
                    m.eval()
            for x, y in loader:
                model(x, y).backward()
                optimizer.step()
        """,
    "hold": """
        import frostline
        frostline.freeze(model, "backbone", optimizer=optimizer)
        model.backbone.requires_grad_(False)
        model.train()
        for x, y in loader:
            model(x, y).backward()
        """,
    "an override of train": """
        from torch import nn
        from torchvision.models import resnet18
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.backbone = resnet18()
                self.backbone.requires_grad_(False)
                self.fc = nn.Linear(1000, 2)
            def train(self, mode=True):
                super().train(mode)
                self.backbone.eval()
                return self
        net = Net()
        for epoch in range(3):
            net.train()
            for x, y in loader:
                criterion(net(x), y).backward()
                optimizer.step()
        """,
    "no layer with statistics": """
        from torch import nn
        encoder = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU())
        head = nn.Linear(8, 2)
        encoder.requires_grad_(False)
        encoder.train()
        for x, y in loader:
            criterion(head(encoder(x)), y).backward()
            optimizer.step()
        """,
    "own class without": """
        from torch import nn
        class Encoder(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.conv = nn.Conv2d(3, width, 3)
                self.norm = nn.GroupNorm(4, width)
        encoder = Encoder(8)
        for p in encoder.parameters():
            p.requires_grad = False
        encoder.train()
        for x, y in loader:
            criterion(head(encoder(x)), y).backward()
        """,
    "a text model": """
        from transformers import BertForSequenceClassification
        model = BertForSequenceClassification.from_pretrained("bert-base-uncased")
        for p in model.bert.parameters():
            p.requires_grad = False
        model.train()
        for batch in loader:
            model(**batch).loss.backward()
            optimizer.step()
        """,
    "only a method that freezes": """
        from torch import nn
        from torchvision.models import resnet18
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.backbone = resnet18()
                self.freeze()
            def freeze(self):
                for p in self.backbone.parameters():
                    p.requires_grad = False
            def forward(self, x):
                return self.backbone(x)
        """,
    "a follower": """
        import copy
        def main(student, loader, optimizer):
            teacher = copy.deepcopy(student)
            for p in teacher.parameters():
                p.requires_grad = False
            student.train()
            teacher.train()
            for x in loader:
                loss(student(x), teacher(x)).backward()
                optimizer.step()
                for ps, pt in zip(student.parameters(), teacher.parameters()):
                    pt.data.mul_(0.99).add_(ps.data, alpha=0.01)
        """,
    "in turn": """
        def set_requires_grad(net, flag):
            for p in net.parameters():
                p.requires_grad = flag
        def train(netG, netD, loader, optG, optD):
            netG.train()
            netD.train()
            for x in loader:
                set_requires_grad(netD, True)
                netD(x).mean().backward()
                optD.step()
                set_requires_grad(netD, False)
                netD(netG(x)).mean().backward()
                optG.step()
        """,
    "in turn, a method for one iteration": """
        class Trainer:
            def set_requires_grad(self, nets, requires_grad=False):
                for net in nets:
                    for param in net.parameters():
                        param.requires_grad = requires_grad
            def iteration(self, x):
                self.net_g.train()
                self.net_d.train()
                self.set_requires_grad([self.net_d], True)
                self.net_d(x).mean().backward()
                self.opt_d.step()
                self.set_requires_grad([self.net_d], False)
                self.net_d(self.net_g(x)).mean().backward()
                self.opt_g.step()
        """,
    "thawed": """
        def train(model, loader, optimizer):
            model.backbone.requires_grad_(False)
            model.requires_grad_(True)
            model.train()
            for x in loader:
                model(x).backward()
                optimizer.step()
        """,
    "a keeper that nobody here knows": """
        from mylib import freeze_bn
        def train(model, loader, optimizer):
            model.backbone.requires_grad_(False)
            model.train()
            model.apply(freeze_bn)
            for x in loader:
                freeze_bn(model)
                model(x).backward()
                optimizer.step()
        """,
    "frozen layers in its place": """
        from torchvision.ops import FrozenBatchNorm2d
        from torchvision.models import resnet18
        model = resnet18(norm_layer=FrozenBatchNorm2d)
        model.requires_grad_(False)
        model.train()
        for x in loader:
            model(x).backward()
        """,
    "all but the norms, on purpose": """
        def train(model, loader, optimizer):
            for name, p in model.named_parameters():
                if "bn" not in name:
                    p.requires_grad = False
            model.train()
            for x in loader:
                model(x).backward()
                optimizer.step()
        """,
    "in eval mode while it is held": """
        import frostline
        import torchvision
        net = torchvision.models.resnet18()
        net.requires_grad_(False)
        hold = frostline.freeze(net, "*")
        net.train()
        net(x)
        """,
    "in eval mode in one breath": """
        import lightning as L
        from torchvision.models import resnet50
        class Classifier(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = resnet50(weights="DEFAULT").eval().requires_grad_(False)
                net = resnet50()
                self.other = net.cuda().eval()
                for p in self.other.parameters():
                    p.requires_grad = False
            def training_step(self, batch, batch_idx):
                return self.backbone(batch).mean() + self.other(batch).mean()
        """,
    "a copy of what is in eval mode": """
        import copy
        import torchvision
        model = torchvision.models.resnet18()
        model.eval()
        teacher = copy.deepcopy(model)
        teacher.requires_grad_(False)
        model.train()
        for x in loader:
            (model(x) - teacher(x)).pow(2).mean().backward()
            optimizer.step()
        """,
    "some of it": """
        def train(model, loader, optimizer):
            for name, p in model.named_parameters():
                if name.startswith("embed"):
                    p.requires_grad = False
            model.train()
            for x in loader:
                model(x).backward()
                optimizer.step()
        """,
    "lightning that keeps it in eval mode": """
        import lightning as L
        from torch import nn
        from torchvision.models import resnet50
        class Classifier(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = resnet50(weights="DEFAULT")
                self.backbone.requires_grad_(False)
                self.backbone.eval()
                self.head = nn.Linear(1000, 10)
            def training_step(self, batch, batch_idx):
                x, y = batch
                return nn.functional.cross_entropy(self.head(self.backbone(x)), y)
        """,
    "lightning with a hook": """
        import lightning as L
        from torch import nn
        from torchvision.models import resnet50
        class Classifier(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.backbone = resnet50(weights="DEFAULT")
                self.backbone.requires_grad_(False)
            def on_train_batch_start(self, batch, batch_idx):
                self.backbone.eval()
            def training_step(self, batch, batch_idx):
                return self.backbone(batch).mean()
        """,
    "a vision transformer": """
        import timm, torch
        model = timm.create_model("vit_base_patch16_224")
        model.requires_grad_(False)
        model.head = torch.nn.Linear(768, 10)
        model.train()
        for x, y in loader:
            criterion(model(x), y).backward()
        """,
}


@pytest.mark.parametrize("name", TRUE)
def test_found(name, check):
    assert check(TRUE[name], CODE)


@pytest.mark.parametrize("name", WITH_FILES)
def test_found_across_files(name, check):
    files = {"helpers.py": HELPERS, "nets.py": NETS.format(layer="bn = nn.BatchNorm2d(width)")}
    assert check(WITH_FILES[name], CODE, files)


@pytest.mark.parametrize("name", SILENT)
def test_silent(name, find):
    assert find(SILENT[name], CODE) == []


def test_silent_where_the_class_of_another_file_has_no_statistics(find):
    files = {"nets.py": NETS.format(layer="norm = nn.GroupNorm(2, width)")}
    assert find(WITH_FILES["class of another file"], CODE, files) == []


def test_silent_where_a_helper_of_another_file_looks_after_the_mode(find):
    text = WITH_FILES["helper of another file"].replace("import freeze", "import freeze, set_bn_eval")
    kept = text.replace("model.train()", "model.train()\n            set_bn_eval(model)")
    assert find(kept, CODE, {"helpers.py": HELPERS}) == []


def test_known_layers_are_an_error_and_unknown_ones_a_warning(find):
    [sure] = find(TRUE["own net"], CODE)
    [unsure] = find(TRUE["trainer"], CODE)
    assert (sure.finding.severity.value, sure.finding.inferred) == ("error", False)
    assert (unsure.finding.severity.value, unsure.finding.inferred) == ("warning", True)


def test_the_message_names_the_line_that_undoes_eval(find):
    [found] = find(TRUE["eval before train"], CODE)
    assert found.finding.message == (
        "model.backbone is frozen but in train mode: train() at line 7 lets normalization statistics in it move"
    )
    assert found.finding.evidence.splitlines() == [
        "line 4 sets requires_grad of model.backbone",
        "line 7 puts it into train mode",
        "the eval() of line 5 comes too early: train() undoes it",
        "line 9 runs it so",
        "what layers model.backbone has is not told here; it may have none with statistics",
    ]


def test_the_fix_puts_the_part_into_eval_mode_after_train(fixed):
    text = TRUE["eval before train"]
    assert "model.train()\n        model.backbone.eval()\n" in fixed(text, CODE, unsafe=True)
    assert "model.train()\n        model.backbone.eval()\n" not in fixed(text, CODE)


@pytest.mark.parametrize("name", ["tutorial", "lightning", "flag of a helper", "made in train mode"])
def test_no_fix_where_eval_would_reach_the_new_head_or_nothing_calls_train(name, find):
    [found] = find(TRUE[name], CODE)
    assert found.fix is None


def test_the_planted_loop_is_found_and_its_twin_is_not(find):
    text = Path(__file__).parents[3].joinpath("benchmarks/planted_loops/f107.py").read_text()
    assert [each.finding.line for each in find(text, CODE)] == [20]


def test_the_remedy_is_code_as_the_user_would_write_it(find):
    text = """
    import torch, torchvision
    def train(model, loader, optimizer):
        model.train()
        for x, y in loader:
            criterion(model(x), y).backward()
            optimizer.step()
    def main():
        model = torchvision.models.resnet18()
        for name, p in model.named_parameters():
            if not name.startswith("fc"):
                p.requires_grad = False
        optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
        train(model, loader, optimizer)
    """
    (found,) = find(text, CODE)
    assert found.finding.remedy.endswith("or frostline.freeze(model, ...)")
