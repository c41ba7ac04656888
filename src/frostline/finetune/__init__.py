"""Floor 5: the main job, fine-tuning part of a model with proof that the rest did not move."""

from frostline.finetune.config import FinetuneConfig as FinetuneConfig
from frostline.finetune.job import RunResult as RunResult
from frostline.finetune.job import resume as resume
from frostline.finetune.job import run as run
