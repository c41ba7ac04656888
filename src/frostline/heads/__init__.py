"""Replacing and widening classifiers: the model, its attributes and the optimizer change together, or not at all."""

from frostline.heads.initial import new_head as new_head
from frostline.heads.plan import HeadChange as HeadChange
from frostline.heads.plan import HeadPlan as HeadPlan
from frostline.heads.replace import plan_replace_head as plan_replace_head
from frostline.heads.replace import replace_head as replace_head
from frostline.heads.widen import plan_widen as plan_widen
from frostline.heads.widen import widen as widen
from frostline.heads.widened import WidenedConv1d as WidenedConv1d
from frostline.heads.widened import WidenedConv2d as WidenedConv2d
from frostline.heads.widened import WidenedConv3d as WidenedConv3d
from frostline.heads.widened import WidenedLinear as WidenedLinear
