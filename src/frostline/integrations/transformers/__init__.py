"""Holds, schedules and the doctor in a :class:`transformers.Trainer`, as callbacks of it."""

from frostline.integrations.versions import supported

for _package, _oldest, _tested in (("transformers", "4.44", "5.23"), ("accelerate", "1.0", "1.15")):
    supported(
        _package,
        oldest=_oldest,
        tested=_tested,
        extra="transformers",
        purpose="frostline.integrations.transformers",
    )

from frostline.integrations.transformers.doctor import Doctor as Doctor  # noqa: E402 - the versions come first
from frostline.integrations.transformers.freeze import Freeze as Freeze  # noqa: E402
