"""S5: part of a checkpoint, where names differ and nothing says that nothing was loaded."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import frostline as fl

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train, test = slice(0, 1300), slice(1300, None)


def trunk(conv, norm):
    parts = {f"{conv}1": nn.Conv2d(1, 16, 3, padding=1), f"{norm}1": nn.BatchNorm2d(16), "act1": nn.ReLU()}
    parts |= {f"{conv}2": nn.Conv2d(16, 16, 3, stride=2), f"{norm}2": nn.BatchNorm2d(16), "act2": nn.ReLU()}
    net = nn.Sequential()
    for name, part in parts.items():
        net.add_module(name, part)
    return net.append(nn.Flatten())


def fit(trunk, head, steps=150):
    """Train the head, and whatever of the trunk is not held."""
    parameters = [p for p in [*trunk.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(steps):
        batch = torch.randint(0, 1300, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(trunk.train()(images[batch])), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        return (head(trunk.eval()(images[test])).argmax(1) == labels[test]).float().mean().item()


torch.manual_seed(0)
folder = tempfile.TemporaryDirectory()
file = Path(folder.name) / "pretrained.pth"
teacher = nn.ModuleDict({"backbone": trunk("conv", "bn"), "projector": nn.Linear(144, 10)})
fit(teacher["backbone"], teacher["projector"])
named = {f"module.{name}": value for name, value in teacher.state_dict().items()}
torch.save({"epoch": 1, "model": named | {"module.queue": torch.zeros(8)}}, file)

print("The mistake: filter keys by substring, update, load what fits")
mine = nn.ModuleDict({"trunk": trunk("conv_", "norm_"), "head": nn.Linear(144, 10)})
state = torch.load(file, weights_only=True)
wanted = {name.replace("backbone.", ""): value for name, value in state.items() if "backbone" in name}
print("  missing:", len(mine.load_state_dict(wanted, strict=False).missing_keys), "entries, and no error")

print("\nWhat is in it, by fl.checkpoint.inspect:")
print(fl.checkpoint.inspect(fl.checkpoint.open_checkpoint(file)))

print("\nThe plan, of the whole file:")
try:
    fl.plan_load(mine["trunk"], file).apply()
except fl.errors.CheckpointError as error:
    print(error)

print("\nThe plan, of the part that is wanted:")
plan = fl.plan_load(mine["trunk"], file, take="backbone")
report = plan.apply()
print(plan)
print(report.summary)
print("equal to the bit:", torch.equal(mine["trunk"][0].weight, teacher["backbone"][0].weight))

for name, part in (("loaded", mine["trunk"]), ("random", trunk("conv", "bn"))):
    with fl.frozen(part, "*"):
        print(f"a new head on the {name} trunk, frozen: {fit(part, nn.Linear(144, 10), steps=40):.1%}")
folder.cleanup()
