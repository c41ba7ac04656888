"""Floor 4: one trunk, many heads; training one task at a time, and proof that the others did not notice."""

from frostline.tasks.isolation import HeadReport as HeadReport
from frostline.tasks.isolation import Isolation as Isolation
from frostline.tasks.isolation import IsolationReport as IsolationReport
from frostline.tasks.isolation import logits_of as logits_of
from frostline.tasks.task_model import TaskModel as TaskModel
from frostline.tasks.training import TaskTraining as TaskTraining
from frostline.tasks.training import fit_task as fit_task
from frostline.tasks.training import train_task as train_task
