"""What freezing makes cheap: frozen prefixes that run once, cached features, many heads at the cost of one."""

from frostline.fast.features import Extractor as Extractor
from frostline.fast.features import Features as Features
from frostline.fast.features import Place as Place
from frostline.fast.prefix import Prefix as Prefix
from frostline.fast.prefix_plan import PrefixPlan as PrefixPlan
from frostline.fast.prefix_plan import plan as plan
from frostline.fast.savings import Saving as Saving
from frostline.fast.variants import Variant as Variant
