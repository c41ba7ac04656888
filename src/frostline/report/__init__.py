"""Floor 5: results to one self-contained page. Sees dataclasses, never a model; jinja2 and matplotlib are an extra."""

from frostline.report.curves import Curve as Curve
from frostline.report.module_tree import HeldEntry as HeldEntry
from frostline.report.module_tree import MovedEntry as MovedEntry
from frostline.report.outcome import HeadOutcome as HeadOutcome
from frostline.report.outcome import Outcome as Outcome
from frostline.report.run_page import RunPage as RunPage
from frostline.report.run_page import render_run as render_run
