"""Floor 5: holds, schedules and the doctor inside of the frameworks that people train with.

Each module needs its framework alone, and uses public names of it and of Frostline only:
:mod:`~frostline.integrations.lightning`, :mod:`~frostline.integrations.transformers`,
:mod:`~frostline.integrations.accelerate`, :mod:`~frostline.integrations.timm`.
"""
