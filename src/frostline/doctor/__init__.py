"""Floor 4: what went wrong in a loop that was watched, why, and what mends it. One file a rule."""

from frostline.doctor.examination import Examination as Examination
from frostline.doctor.examine import examine as examine
from frostline.doctor.rule import Found as Found
from frostline.doctor.rule import Rule as Rule
from frostline.doctor.rules import all_rules as all_rules
