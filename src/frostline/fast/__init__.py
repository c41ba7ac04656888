"""What freezing makes cheap: frozen prefixes that run once, cached features, many heads at the cost of one."""

from frostline.fast.cache_reports import CacheEstimate as CacheEstimate
from frostline.fast.cache_reports import FillReport as FillReport
from frostline.fast.cached_features import CachedFeatures as CachedFeatures
from frostline.fast.converged import Converged as Converged
from frostline.fast.convergence import ConvergenceReport as ConvergenceReport
from frostline.fast.feature_cache import FeatureCache as FeatureCache
from frostline.fast.features import Extractor as Extractor
from frostline.fast.features import Features as Features
from frostline.fast.features import Place as Place
from frostline.fast.head_task import HeadTask as HeadTask
from frostline.fast.head_task import sweep as sweep
from frostline.fast.heads import train_heads as train_heads
from frostline.fast.heads_result import HeadsResult as HeadsResult
from frostline.fast.narrowing import NarrowingCost as NarrowingCost
from frostline.fast.prefix import Prefix as Prefix
from frostline.fast.prefix_plan import PrefixPlan as PrefixPlan
from frostline.fast.prefix_plan import plan as plan
from frostline.fast.savings import Saving as Saving
from frostline.fast.variants import Variant as Variant
