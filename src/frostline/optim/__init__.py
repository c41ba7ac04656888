"""Parameter groups, rates by layer, and unfreezing on a schedule."""

from frostline.optim.check import GroupCheck as GroupCheck
from frostline.optim.check import check_groups as check_groups
from frostline.optim.depth import Depths as Depths
from frostline.optim.depth import depth_of as depth_of
from frostline.optim.depth import find_head as find_head
from frostline.optim.groups import ParamGroups as ParamGroups
from frostline.optim.groups import param_groups as param_groups
from frostline.optim.unfreeze import Epoch as Epoch
from frostline.optim.unfreeze import Plateau as Plateau
from frostline.optim.unfreeze import Stage as Stage
from frostline.optim.unfreeze import Step as Step
from frostline.optim.unfreeze import Unfreeze as Unfreeze
from frostline.optim.unfreeze import gradual as gradual
from frostline.optim.unfreeze import probe_then_tune as probe_then_tune
from frostline.optim.unfreezing import Unfreezing as Unfreezing
