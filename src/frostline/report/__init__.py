"""Floor 5: results to one self-contained page. Sees dataclasses, never a model; jinja2 and matplotlib are an extra."""

from frostline.report.curves import Curve as Curve
from frostline.report.doctor_page import DoctorPage as DoctorPage
from frostline.report.doctor_page import render_doctor as render_doctor
from frostline.report.meta_page import AccuracyLine as AccuracyLine
from frostline.report.meta_page import MetaPage as MetaPage
from frostline.report.meta_page import VariationLine as VariationLine
from frostline.report.meta_page import render_meta as render_meta
from frostline.report.module_tree import HeldEntry as HeldEntry
from frostline.report.module_tree import MovedEntry as MovedEntry
from frostline.report.norm_charts import LayerLine as LayerLine
from frostline.report.norm_page import CauseLine as CauseLine
from frostline.report.norm_page import ChangeLine as ChangeLine
from frostline.report.norm_page import NormPage as NormPage
from frostline.report.norm_page import Range as Range
from frostline.report.norm_page import RemedyLine as RemedyLine
from frostline.report.norm_page import ScoreLine as ScoreLine
from frostline.report.norm_page import render_norms as render_norms
from frostline.report.outcome import HeadOutcome as HeadOutcome
from frostline.report.outcome import Outcome as Outcome
from frostline.report.rule_text import RuleText as RuleText
from frostline.report.run_page import RunPage as RunPage
from frostline.report.run_page import render_run as render_run
from frostline.report.sarif import render_sarif as render_sarif
from frostline.report.table_page import TablePage as TablePage
from frostline.report.table_page import render_table as render_table
