"""Names of torch and its kin, as data: which make modules, optimizers, wrappers ..., and what their methods give.

Source: the public documentation of torch 2.13, torchvision 0.28, timm 1.0, transformers 5, accelerate 1.15 and
lightning 2.6.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Where a name is bound nowhere in a file (a pasted cell), these are what everybody means by it.
USUAL = {
    "torch": "torch",
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "optim": "torch.optim",
    "np": "numpy",
    "torchvision": "torchvision",
    "timm": "timm",
}

_INNER = re.compile(r"^(torch\.nn)\.modules\.\w+\.(\w+)$|^(torch\.optim)\.(?!lr_scheduler|swa_utils)\w+\.([A-Z]\w*)$")
_SHORTER = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "torch.nn.parallel.DistributedDataParallel",
    "torch.nn.parallel.data_parallel.DataParallel": "torch.nn.DataParallel",
    "torch.nn.parallel.DataParallel": "torch.nn.DataParallel",
    "torch.nn.parameter.Parameter": "torch.nn.Parameter",
    "torch.nn.utils.clip_grad.clip_grad_norm_": "torch.nn.utils.clip_grad_norm_",
    "torch.nn.utils.clip_grad.clip_grad_value_": "torch.nn.utils.clip_grad_value_",
    "torch.nn.utils.clip_grad_norm": "torch.nn.utils.clip_grad_norm_",
    "torch.autograd.grad_mode.no_grad": "torch.no_grad",
    "torch.autograd.no_grad": "torch.no_grad",
    "torch.autograd.inference_mode": "torch.inference_mode",
    "torch.nn.modules.Module": "torch.nn.Module",
}


def shortest(name: str) -> str:
    """The documented name of something of torch that was imported from where it is implemented.

    Example:
        >>> shortest("torch.nn.modules.batchnorm._BatchNorm"), shortest("torch.optim.adamw.AdamW")
        ('torch.nn._BatchNorm', 'torch.optim.AdamW')
    """
    if not name.startswith("torch."):
        return name
    found = _INNER.match(name)
    if found:
        return f"{found[1]}.{found[2]}" if found[1] else f"{found[3]}.{found[4]}"
    return _SHORTER.get(name, name)


MODULE_BASES = frozenset(
    {
        "torch.nn.Module",
        "lightning.LightningModule",
        "lightning.pytorch.LightningModule",
        "pytorch_lightning.LightningModule",
        "pytorch_lightning.core.LightningModule",
        "transformers.PreTrainedModel",
        "torch.jit.ScriptModule",
    }
)
"""Base classes, besides all of ``torch.nn``, that make a class a module."""

LIGHTNING = frozenset(name for name in MODULE_BASES if name.endswith("LightningModule"))

# Of torch.nn, what is no module.
_NO_MODULES = frozenset(
    {"Parameter", "Buffer", "UninitializedParameter", "UninitializedBuffer", "LinearCrossEntropyOptions"}
)

BATCH_NORMS = frozenset(
    f"torch.nn.{name}"
    for name in (
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "SyncBatchNorm",
        "LazyBatchNorm1d",
        "LazyBatchNorm2d",
        "LazyBatchNorm3d",
        "_BatchNorm",
    )
)
DROPOUTS = frozenset(
    f"torch.nn.{name}"
    for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
)

MODULE_FACTORIES = (
    "torchvision.models.",
    "timm.create_model",
    "timm.models.",
    "torch.hub.load",
    "segmentation_models_pytorch.",
    "open_clip.create_model",
    "sentence_transformers.SentenceTransformer",
)
"""Functions whose result is a module, by the beginning of their names."""

HOLDS = frozenset({"frostline.freeze", "frostline.frozen", "frostline.freezing.freeze", "frostline.freezing.frozen"})
"""What holds parts of a model, with their mode."""

WRAPPERS = {
    "torch.nn.parallel.DistributedDataParallel": "ddp",
    "apex.parallel.DistributedDataParallel": "ddp",
    "torch.nn.DataParallel": "dp",
    "torch.distributed.fsdp.FullyShardedDataParallel": "fsdp",
    "torch.distributed.fsdp.fully_shard": "fsdp",
    "torch.distributed._composable.fsdp.fully_shard": "fsdp",
    "torch.compile": "compile",
    "torch.optim.swa_utils.AveragedModel": "averaged",
}
"""What wraps a module, and how."""

SAME_MODULE = frozenset(
    {
        "to", "cuda", "cpu", "half", "float", "double", "bfloat16", "type", "to_empty", "xpu", "share_memory",
        "train", "eval", "requires_grad_", "apply",
    }
)  # fmt: skip
"""Methods of a module that return the module."""

MOVES = frozenset({"to", "cuda", "cpu", "half", "float", "double", "bfloat16", "type", "to_empty", "xpu"})

ITERATORS = {
    "parameters": "parameters",
    "named_parameters": "named_parameters",
    "buffers": "tensors",
    "named_buffers": "named_tensors",
    "modules": "modules",
    "children": "modules",
    "named_modules": "named_modules",
    "named_children": "named_modules",
}
"""Methods of a module that go over its parts, and what kind of value they give."""

ONLY_MODULES = frozenset({"parameters", "named_parameters", "named_modules", "named_children", "load_state_dict"})
"""Methods that hardly anything but a module has: who is asked for them is one."""

# Names by which people call things; what they are called is a hint, never certain.
HINTS = (
    ("optimizer", re.compile(r"^(\w+_)?(opt|optim|optimizer|optimiser)(_\w{1,3}|\d+|[A-Z]\w{0,2}|s)?$|^optimizer")),
    ("scheduler", re.compile(r"sched", re.I)),
    ("scaler", re.compile(r"(^|_)(grad_?)?scaler$", re.I)),
    ("loader", re.compile(r"loader(_\w+)?$|^dl$|_dl$|batches$", re.I)),
    ("accelerator", re.compile(r"^(accelerator|fabric)$")),
    (
        "module",
        re.compile(
            # What begins with a verb is a method: freeze_backbone, build_model.
            r"^(?!(un)?(freeze|build|make|create|get|load|save|init|set|update|setup|configure|prepare|replace|convert)_)"
            r"(?:(model|net|network|backbone|encoder|decoder|trunk|teacher|student|generator|discriminator|critic|"
            r"net[GD]|classifier|feature_extractor)(_?(ema|s|t|q|k|\d+))?$"
            r"|.*_(model|net|network|backbone|encoder|decoder)$)"
        ),
    ),
)

OPTIMIZERS = re.compile(
    r"^(SGD|Adam\w*|NAdam|RAdam|RMSprop|Adagrad|Adadelta|AdamW\w*|SparseAdam|LBFGS|ASGD|Rprop|Adafactor|Muon|Lion|"
    r"LARS|LAMB|Lamb|FusedAdam|FusedLAMB|Lookahead|Ranger\w*|MADGRAD|Prodigy|Sophia\w*|\w*ScheduleFree\w*)$"
)
"""Classes of optimizers, wherever they come from."""

SCHEDULERS = re.compile(r"(LR|Scheduler|Restarts|LambdaLR|ReduceLROnPlateau)$|^get_\w*schedule\w*$|^get_scheduler$")

SAVERS = frozenset({"torch.save", "safetensors.torch.save_file", "safetensors.torch.save_model"})
NO_GRAD = frozenset({"torch.no_grad", "torch.inference_mode"})
CLIPS = frozenset({"torch.nn.utils.clip_grad_norm_", "torch.nn.utils.clip_grad_value_"})
WRITES = re.compile(r"^(copy_|fill_|zero_|normal_|uniform_|add_|sub_|mul_|div_|clamp_|lerp_|addcmul_|set_)$")
"""Tensor methods that write into a parameter."""
METRICS = re.compile(r"(^|_)(acc|accuracy|correct|auc|f1|iou|dice|topk|argmax|confusion|metric|psnr|ssim|top1)", re.I)
"""Functions and methods that count or compare what only validation needs."""


def is_module_class(name: str) -> bool:
    """Whether a class of a library is a module.

    Example:
        >>> is_module_class("torch.nn.Linear"), is_module_class("torch.nn.Parameter"), is_module_class("torch.nn.init")
        (True, False, False)
    """
    if name in MODULE_BASES:
        return True
    head, _, last = name.rpartition(".")
    return (head == "torch.nn" and last[:1].isupper() and last not in _NO_MODULES) or name == "torch.nn._BatchNorm"


def makes_module(name: str) -> bool:
    """Whether calling something of a library gives a module."""
    if is_module_class(name):
        return True
    if name.startswith(("transformers.", "diffusers.")):
        return name.endswith((".from_pretrained", ".from_config")) and not re.search(
            r"Tokenizer|Processor|Config|FeatureExtractor|Scheduler|Pipeline", name
        )
    return name.startswith(MODULE_FACTORIES) and "Weights" not in name


@lru_cache(maxsize=8192)
def hinted(name: str) -> str:
    """The kind of thing that people call by this name; "" for most names.

    Example:
        >>> hinted("my_backbone"), hinted("freeze_backbone")
        ('module', '')
        >>> hinted("optimizer_g"), hinted("net"), hinted("lr_scheduler"), hinted("x")
        ('optimizer', 'module', 'scheduler', '')
    """
    for kind, pattern in HINTS:
        if pattern.search(name):
            return kind
    return ""
