"""Training loops that do nothing wrong: 25 architectures and the habits of loops that look odd and are right.

``LOOPS`` maps a name to a function that takes nothing, runs a few steps under ``frostline.watch`` and returns what was
seen. The doctor has to stay silent on all of them: no finding above ``info``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

import frostline as fl
from frostline.compat import import_torchvision

STEPS = 3


def _vision(model: nn.Module, size: int, *, batch: int = 2, classes: int = 5) -> object:
    """The loop of a tutorial: train, validate, schedule, keep the best."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    with fl.watch(model, optimizer) as seen:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
        best = None
        for _ in range(2):
            model.train()
            for _ in range(STEPS):
                x, y = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))
                optimizer.zero_grad()
                out = model(x)
                loss = F.cross_entropy(out, y)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            scheduler.step()
            model.eval()
            with torch.no_grad():
                model(torch.randn(batch, 3, size, size))
            best = copy.deepcopy(model.state_dict())
        model.load_state_dict(best)
    return seen


def _torchvision(name: str, size: int = 64, **settings: object) -> Callable[[], object]:
    def loop() -> object:
        torch.manual_seed(0)
        models = import_torchvision().models
        return _vision(models.get_model(name, weights=None, num_classes=5, **settings), size)

    return loop


def _timm(name: str, size: int = 64, **settings: object) -> Callable[[], object]:
    def loop() -> object:
        import_torchvision()
        import timm

        torch.manual_seed(0)
        return _vision(timm.create_model(name, pretrained=False, num_classes=5, **settings), size)

    return loop


def _segmentation() -> object:
    torch.manual_seed(0)
    models = import_torchvision().models.segmentation
    model = models.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with fl.watch(model, optimizer) as seen:
        for _ in range(2):
            model.train()
            for _ in range(STEPS):
                optimizer.zero_grad()
                out = model(torch.randn(2, 3, 64, 64))["out"]
                F.cross_entropy(out, torch.randint(3, (2, 64, 64))).backward()
                optimizer.step()
            model.eval()
            with torch.inference_mode():
                model(torch.randn(1, 3, 64, 64))
    return seen


def _detection() -> object:
    """Several inputs of different sizes, losses in a dict. Not evaluated: the operator for that may not be built."""
    torch.manual_seed(0)
    models = import_torchvision().models.detection
    model = models.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    targets = [{"boxes": torch.tensor([[5.0, 5.0, 60.0, 60.0]]), "labels": torch.tensor([1])}] * 2
    with fl.watch(model, optimizer) as seen:
        model.train()
        for _ in range(STEPS):
            losses = model([torch.rand(3, 96, 96), torch.rand(3, 80, 96)], copy.deepcopy(targets))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    return seen


def _bert() -> object:
    import_torchvision()  # transformers imports it, and its operators do not load beside this torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=100, **sizes))
    decay = [p for n, p in model.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    rest = [p for n, p in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4)
    with fl.watch(model, optimizer) as seen:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        for _ in range(2):
            model.train()
            for _ in range(STEPS):
                ids = torch.randint(100, (4, 12))
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.randint(2, (4,)))
                out.loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                model.zero_grad()
            model.eval()
            with torch.no_grad():
                model(input_ids=torch.randint(100, (4, 12)))
    return seen


def _gan() -> object:
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    sn = nn.utils.parametrizations.spectral_norm
    d = nn.Sequential(sn(nn.Linear(4, 16)), nn.LeakyReLU(0.2), sn(nn.Linear(16, 1)))
    with fl.watch() as seen:
        opt_g = torch.optim.Adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for _ in range(2 * STEPS):
            real, noise = torch.randn(8, 4), torch.randn(8, 8)
            opt_d.zero_grad()
            fake = g(noise)
            F.softplus(-d(real)).mean().backward()
            F.softplus(d(fake.detach())).mean().backward()
            opt_d.step()
            opt_g.zero_grad()
            F.softplus(-d(fake)).mean().backward()
            opt_g.step()
    return seen


def _gan_in_turn() -> object:
    """The discriminator is switched off while the generator trains, and on again."""
    torch.manual_seed(0)
    g, d = nn.Linear(8, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with fl.watch() as seen:
        opt_g, opt_d = torch.optim.RMSprop(g.parameters(), lr=1e-3), torch.optim.RMSprop(d.parameters(), lr=1e-3)
        for _ in range(STEPS):
            for p in d.parameters():
                p.requires_grad_(True)
            opt_d.zero_grad(set_to_none=True)
            (d(g(torch.randn(4, 8)).detach()).mean() - d(torch.randn(4, 4)).mean()).backward()
            opt_d.step()
            for p in d.parameters():
                p.requires_grad_(False)
            opt_g.zero_grad(set_to_none=True)
            (-d(g(torch.randn(4, 8))).mean()).backward()
            opt_g.step()
    return seen


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12, padding_idx=0)
        self.rnn = nn.LSTM(12, 16, num_layers=2, dropout=0.3, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(self.embed(ids))[0])


def _rnn() -> object:
    """Sequences of many lengths, one to a batch, and the last batch is short."""
    torch.manual_seed(0)
    model = _Tagger()
    with fl.watch(model) as seen:
        optimizer = torch.optim.Adam(model.parameters())
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        for _ in range(2):
            model.train()
            for length, batch in ((7, 4), (5, 4), (9, 2)):
                ids = torch.randint(1, 50, (batch, length))
                optimizer.zero_grad()
                F.cross_entropy(model(ids).flatten(0, 1), torch.randint(6, (batch * length,))).backward()
                nn.utils.clip_grad_value_(model.parameters(), 1.0)
                optimizer.step()
            model.eval()
            with torch.no_grad():
                plateau.step(
                    F.cross_entropy(model(torch.randint(1, 50, (4, 5))).flatten(0, 1), torch.randint(6, (20,)))
                )
    return seen


def _convolutions(classes: int = 4) -> nn.Sequential:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(stem, nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, classes))


def _accumulation() -> object:
    torch.manual_seed(0)
    model, k = _convolutions(), 4
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.train()
        optimizer.zero_grad()
        for i in range(12):
            loss = F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(4, (4,))) / k
            loss.backward()
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
    return seen


def _amp() -> object:
    torch.manual_seed(0)
    model = _convolutions()
    with fl.watch(model) as seen:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for _ in range(2 * STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(4, (4,)))
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
    return seen


def _ema() -> object:
    torch.manual_seed(0)
    model = _convolutions()
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        average.eval()
        for _ in range(2):
            model.train()
            for _ in range(STEPS):
                optimizer.zero_grad()
                F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(4, (4,))).backward()
                optimizer.step()
                average.update_parameters(model)
            with torch.no_grad():
                average(torch.randn(4, 3, 8, 8))
    return seen


def _swa() -> object:
    torch.manual_seed(0)
    model = _convolutions()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(STEPS)]
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        average = torch.optim.swa_utils.AveragedModel(model)
        for _ in range(2):
            model.train()
            for x in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(x), torch.randint(4, (4,))).backward()
                optimizer.step()
            average.update_parameters(model)
        torch.optim.swa_utils.update_bn(batches, average)
        average.eval()
        with torch.no_grad():
            average(batches[0])
    return seen


class _Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(3)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def _checkpointing() -> object:
    torch.manual_seed(0)
    model = _Checkpointed()
    with fl.watch(model) as seen:
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2 * STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(4, 8)), torch.randint(2, (4,))).backward()
            optimizer.step()
    return seen


def _compiled() -> object:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = _convolutions()
    with fl.watch(model) as seen:
        compiled = torch.compile(model, backend="aot_eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(2):
            compiled.train()
            for _ in range(STEPS):
                optimizer.zero_grad()
                F.cross_entropy(compiled(torch.randn(4, 3, 8, 8)), torch.randint(4, (4,))).backward()
                optimizer.step()
            compiled.eval()
            with torch.no_grad():
                compiled(torch.randn(4, 3, 8, 8))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # the loops after this one may be looked at by operators again
    return seen


def _held_trunk() -> object:
    """Freezing that is right: a hold, and only the head in the optimizer."""
    torch.manual_seed(0)
    model = _convolutions()
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        fl.freeze(model, "0", optimizer=optimizer)
        for _ in range(2):
            model.train()
            for _ in range(STEPS):
                optimizer.zero_grad()
                F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(4, (4,))).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                model(torch.randn(4, 3, 8, 8))
    return seen


def _frozen_by_hand() -> object:
    """Freezing by hand that is right: flags, eval after every train, features without a graph."""
    torch.manual_seed(0)
    stem, head = _convolutions()[0], nn.Linear(8, 4)
    with fl.watch() as seen:
        for p in stem.parameters():
            p.requires_grad = False
        stem.eval()
        optimizer = torch.optim.Adam(head.parameters())
        for _ in range(2):
            head.train()
            for _ in range(STEPS):
                with torch.no_grad():
                    features = stem(torch.randn(4, 3, 8, 8)).flatten(1)
                optimizer.zero_grad()
                F.cross_entropy(head(features), torch.randint(4, (4,))).backward()
                optimizer.step()
    return seen


def _two_rates() -> object:
    """The trunk at a tenth of the rate of the head, one scheduler over both, a warm-up from zero."""
    torch.manual_seed(0)
    model = _convolutions()
    with fl.watch(model) as seen:
        groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[3].parameters(), "lr": 0.1}]
        optimizer = torch.optim.SGD(groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 4))
        model.train()
        for _ in range(2 * STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(4, (4,))).backward()
            optimizer.step()
            scheduler.step()
    return seen


def _distillation() -> object:
    torch.manual_seed(0)
    teacher, student = _convolutions(), _convolutions()
    with fl.watch() as seen:
        teacher.eval().requires_grad_(False)
        optimizer = torch.optim.Adam(student.parameters())
        student.train()
        for _ in range(2 * STEPS):
            x = torch.randn(4, 3, 8, 8)
            with torch.no_grad():
                wanted = teacher(x).softmax(1)
            optimizer.zero_grad()
            F.kl_div(student(x).log_softmax(1), wanted, reduction="batchmean").backward()
            optimizer.step()
    return seen


def _lbfgs() -> object:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(16, 3), torch.randn(16, 1)
    with fl.watch(model) as seen:
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            return loss

        for _ in range(STEPS):
            optimizer.step(closure)
    return seen


def _cleared_by_hand() -> object:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2 * STEPS):
            for p in model.parameters():
                p.grad = None
            F.mse_loss(model(torch.randn(8, 3)), torch.randn(8, 1)).backward()
            optimizer.step()
    return seen


def _tied() -> object:
    """A language model whose output layer is its embedding."""
    torch.manual_seed(0)
    embed, mix, out = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 20, bias=False)
    out.weight = embed.weight
    model = nn.ModuleDict({"embed": embed, "mix": mix, "out": out})
    with fl.watch(model) as seen:
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2 * STEPS):
            ids = torch.randint(20, (4, 6))
            optimizer.zero_grad()
            logits = model["out"](model["mix"](model["embed"](ids[:, :-1]))[0])
            F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
    return seen


def _meta() -> object:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    with fl.watch(model) as seen:
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(STEPS):
            optimizer.zero_grad()
            total = torch.zeros(())
            for _ in range(2):
                fast = dict(model.named_parameters())
                loss = F.mse_loss(torch.func.functional_call(model, fast, (torch.randn(4, 2),)), torch.randn(4, 2))
                grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                fast = {k: v - 0.1 * g for (k, v), g in zip(fast.items(), grads, strict=True)}
                total = total + F.mse_loss(
                    torch.func.functional_call(model, fast, (torch.randn(4, 2),)), torch.randn(4, 2)
                )
            total.backward()
            optimizer.step()
    return seen


def _resumed() -> object:
    """A checkpoint with everything in it, loaded into fresh objects."""
    torch.manual_seed(0)
    model = _convolutions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(4, (4,))).backward()
    optimizer.step()
    scheduler.step()
    saved = copy.deepcopy(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    )
    with fl.watch() as seen:
        model = _convolutions()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        model.train()
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(4, (4,))).backward()
            optimizer.step()
            scheduler.step()
    return seen


ARCHITECTURES: dict[str, Callable[[], object]] = {
    "torchvision/resnet18": _torchvision("resnet18"),
    "torchvision/mobilenet_v2": _torchvision("mobilenet_v2"),
    "torchvision/mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "torchvision/efficientnet_b0": _torchvision("efficientnet_b0"),
    "torchvision/densenet121": _torchvision("densenet121"),
    "torchvision/shufflenet_v2_x0_5": _torchvision("shufflenet_v2_x0_5"),
    "torchvision/squeezenet1_1": _torchvision("squeezenet1_1"),
    "torchvision/regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "torchvision/mnasnet0_5": _torchvision("mnasnet0_5"),
    "torchvision/alexnet": _torchvision("alexnet", 96),
    "torchvision/vgg11_bn": _torchvision("vgg11_bn", 64),
    "torchvision/convnext_tiny": _torchvision("convnext_tiny"),
    "torchvision/vit_b_32": _torchvision("vit_b_32", 64, image_size=64),
    "torchvision/swin_t": _torchvision("swin_t"),
    "timm/vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", 64, img_size=64),
    "timm/deit_tiny_patch16_224": _timm("deit_tiny_patch16_224", 64, img_size=64, drop_path_rate=0.1),
    "timm/resnetv2_50x1_bit": _timm("resnetv2_50x1_bit"),
    "timm/mixer_s32_224": _timm("mixer_s32_224", 64, img_size=64),
    "timm/ghostnet_050": _timm("ghostnet_050"),
    "timm/edgenext_xx_small": _timm("edgenext_xx_small"),
    "timm/pit_ti_224": _timm("pit_ti_224", 64, img_size=64),
    "timm/repvgg_a0": _timm("repvgg_a0"),
    "timm/nfnet_l0": _timm("nfnet_l0"),
    "torchvision/lraspp_mobilenet_v3_large": _segmentation,
    "torchvision/ssdlite320_mobilenet_v3_large": _detection,
}
HABITS: dict[str, Callable[[], object]] = {
    "transformers BERT": _bert,
    "GAN": _gan,
    "GAN, discriminator switched off and on": _gan_in_turn,
    "RNN": _rnn,
    "gradient accumulation": _accumulation,
    "AMP with a gradient scaler": _amp,
    "EMA": _ema,
    "SWA with update_bn": _swa,
    "activation checkpointing": _checkpointing,
    "torch.compile": _compiled,
    "held trunk": _held_trunk,
    "frozen by hand": _frozen_by_hand,
    "two rates and a warm-up from zero": _two_rates,
    "distillation": _distillation,
    "LBFGS": _lbfgs,
    "gradients cleared by hand": _cleared_by_hand,
    "tied embedding": _tied,
    "MAML": _meta,
    "resumed": _resumed,
}
LOOPS = ARCHITECTURES | HABITS


def run(name: str) -> object:
    """Run one loop; what libraries warn of on their own account is not what is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LOOPS[name]()
