"""What freezing makes cheap: frozen prefixes that run once, cached features, many heads at the cost of one."""

from frostline.fast.features import Extractor as Extractor
from frostline.fast.features import Features as Features
from frostline.fast.features import Place as Place
