"""Names of methods that modules, optimizers and schedulers have, and what a misspelt one was meant to be."""

from __future__ import annotations

from frostline.lint.near_names import distance

METHODS: dict[str, tuple[str, ...]] = {
    "module": (
        "parameters",
        "named_parameters",
        "named_modules",
        "named_children",
        "named_buffers",
        "children",
        "state_dict",
        "load_state_dict",
        "zero_grad",
        "requires_grad_",
        "register_buffer",
        "register_parameter",
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
    ),
    "optimizer": ("zero_grad", "state_dict", "load_state_dict", "add_param_group"),
    "scheduler": ("state_dict", "load_state_dict"),
}
"""Methods whose names are long enough to be told when a letter is wrong, by the kind of thing that has them."""

DISTINCTIVE = frozenset(
    {"named_parameters", "named_modules", "named_children", "named_buffers", "load_state_dict", "zero_grad"}
)
"""Methods that nothing else has: who is asked for a misspelt one is a module or optimizer, whatever it is called."""

# What is further away than a letter, and meant the same.
_OTHERWISE = {
    "named_params": "named_parameters",
    "named_param": "named_parameters",
    "name_params": "named_parameters",
    "name_parameter": "named_parameters",
    "name_module": "named_modules",
    "load_statedict": "load_state_dict",
    "load_dict_state": "load_state_dict",
    "zero_gradient": "zero_grad",
    "zero_gradients": "zero_grad",
    "zeros_grad": "zero_grad",
    "require_grad": "requires_grad_",
    "requiresgrad_": "requires_grad_",
    "requires_grads": "requires_grad_",
}

BEGINNINGS = (
    ".param",
    ".named",
    ".name_",
    ".child",
    ".state_",
    ".stated",
    ".load_",
    ".zero",
    ".requir",
    ".registe",
    ".add_p",
)
"""How misspelt names begin where they are asked for: what is misspelt from the start on is not looked at."""


def meant(name: str, kind: str) -> list[str]:
    """The methods that a name is nearly the name of, best first; none if it is one.

    Args:
        name: what was asked for.
        kind: what was asked for it: ``module``, ``optimizer`` or ``scheduler``.

    Example:
        >>> meant("name_parameters", "module"), meant("zero_grads", "optimizer"), meant("parameters", "module")
        (['named_parameters'], ['zero_grad'], [])
    """
    methods = METHODS.get(kind, ())
    if name in methods or not f".{name}".startswith(BEGINNINGS):
        return []
    if name in _OTHERWISE:
        return [_OTHERWISE[name]] if _OTHERWISE[name] in methods else []
    return [method for method in methods if distance(name, method) == 1]
