"""timm: a new classifier on a trunk that is held, layers that join from the head down, and frozen batch norms."""

import torch
from sklearn.datasets import load_digits

import frostline as fl
from frostline.integrations.timm import frozen_to_hold, layer_groups, replace_classifiers, trunk_and_head
from frostline.optim import Epoch, Stage, Unfreeze, Unfreezing

import timm  # isort: skip - the line above makes it importable beside a CPU build of torch

torch.set_num_threads(1)  # the net is so small that more cost more
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
images = torch.nn.functional.interpolate(images, size=24)
labels = torch.tensor(digits.target)
old, new = labels < 5, labels >= 5
train = torch.arange(len(labels)) < 1300


def fit(net, optimizer, of, first, epoch_end=lambda: None, epochs=4):
    """What any training loop does: it puts the whole net into train mode, each time."""
    generator = torch.Generator().manual_seed(0)
    x, y = images[of & train], labels[of & train] - first
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            net.train()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
        epoch_end()


@torch.no_grad()
def accuracy(net, of, first):
    return float((net.eval()(images[of & ~train]).argmax(1) == labels[of & ~train] - first).float().mean())


torch.manual_seed(0)
net = timm.create_model("test_resnet", pretrained=False, in_chans=1, num_classes=5)
fit(net, torch.optim.AdamW(net.parameters(), lr=3e-3), old, 0)
print(f"digits 0-4, trained from nothing: {accuracy(net, old, 0):.1%}")
first_head = {name: value.clone() for name, value in net.get_classifier().state_dict().items()}

print("\nA new classifier for 5-9, on a trunk that is held")
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
for change in replace_classifiers(net, ["5", "6", "7", "8", "9"], optimizer=optimizer):
    print(change)
hold = fl.freeze(net, *trunk_and_head(net).trunk, optimizer=optimizer)
fit(net, optimizer, new, 5)
print(f"digits 5-9: {accuracy(net, new, 5):.1%}; {hold.verify()}")

print("\nThe first classifier put back on that trunk")
second_head = {name: value.clone() for name, value in net.get_classifier().state_dict().items()}
net.get_classifier().load_state_dict(first_head)
print(f"digits 0-4: {accuracy(net, old, 0):.1%}")
net.get_classifier().load_state_dict(second_head)

print("\nThe same loop with the last two blocks joining one by one")
hold.thaw()
groups = layer_groups(net)
schedule = Unfreeze((Stage(groups["block 4"], Epoch(1)), Stage(groups["block 3"], Epoch(2))))
print(schedule)
hold = fl.freeze(net, *groups["stem"], *groups["block 1"], *groups["block 2"], optimizer=optimizer)
with Unfreezing(schedule, net, optimizer) as unfreezing:
    fit(net, optimizer, new, 5, epoch_end=unfreezing.epoch_end)
print(f"digits 5-9: {accuracy(net, new, 5):.1%}; {hold.verify()}")
hold.thaw()

print("\nFrozen batch norms of timm, as batch norms under a hold and back")
timm.layers.freeze_batch_norm_2d(net)
before = accuracy(net, new, 5)
held = frozen_to_hold(net)
print(f"{len(held.paths)} layers; accuracy the same: {accuracy(net, new, 5) == before}")
fit(net, torch.optim.AdamW(net.get_classifier().parameters(), lr=3e-3), new, 5, epochs=1)
print(held.hold.verify())
print("back:", type(held.back().get_submodule(held.paths[0])).__name__)
