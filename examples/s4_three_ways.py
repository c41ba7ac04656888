"""S4: three ways to fine-tune, and two ways to believe that one does."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import frostline as fl

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
small = labels < 5  # learned first; the other five are the new task
first, second = images[small], images[~small]


def net():
    trunk = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((1, 16), (16, 32))),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip
    return nn.ModuleDict({"trunk": trunk, "head": nn.Linear(128, 5)})


def train(model, groups, inputs, classes, steps=60):
    """SGD with a cosine schedule, which has to scale every group; the accuracy on what was left out."""
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    fl.optim.check_groups(model, optimizer).raise_if_wrong()
    torch.manual_seed(1)
    for step in range(steps):
        if step in (0, steps // 2):
            rates = [f"{group['name']} {group['lr']:.3g}" for group in optimizer.param_groups]
            print(f"    rates at step {step}: {', '.join(rates)}")
        batch = torch.randint(0, 100, (32,))
        optimizer.zero_grad()
        logits = model["head"](model["trunk"].train()(inputs[batch]))
        nn.functional.cross_entropy(logits, classes[batch]).backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        return (model["head"](model["trunk"].eval()(inputs[100:])).argmax(1) == classes[100:]).float().mean().item()


torch.manual_seed(0)
start = net()
train(start, fl.optim.param_groups(start, 0.1), first, labels[small], steps=200)

print("\nThe mistakes: a typo that no one hears of, and a trunk listed by names that miss the head")
wrong = copy.deepcopy(start)
for parameter in wrong["trunk"].parameters():
    parameter.require_grad = False  # no such attribute: everything still trains
print("  trainable after the typo:", sum(p.requires_grad for p in wrong.parameters()), "of 10 tensors")
named = [p for name, p in wrong.named_parameters() if "trunk.0" in name]
print(" ", str(fl.optim.check_groups(wrong, torch.optim.SGD(named, lr=0.1))).splitlines()[3].strip())

tuned = {}
for way in ("a: the new head alone", "b: everything", "c: everything, the trunk at a tenth of the rate"):
    model = copy.deepcopy(start)
    torch.manual_seed(2)
    fl.replace_head(model, "head", ["5", "6", "7", "8", "9"])
    hold = fl.freeze(model, "trunk") if way[0] == "a" else None
    rates = {"lr": 0.01, "head_lr": 0.1} if way[0] == "c" else {"lr": 0.1}
    print(f"\n{way}")
    groups = fl.optim.param_groups(model, head="head", weight_decay=1e-4, no_decay=[], **rates)
    accuracy = train(model, groups, second, labels[~small] - 5)
    print(f"  accuracy {accuracy:.1%}; {hold.verify() if hold else 'the trunk trained'}")
