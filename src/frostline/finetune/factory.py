"""A user's own model: find ``package.module:factory``, and call it.

Knows how to import and call; knows nothing of classifiers or weights.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Callable
from types import ModuleType

from torch import nn

from frostline.errors import ModelError, name_some
from frostline.extras import working_directory_importable
from frostline.finetune.classifier import first_line

FORMS = "timm/NAME, torchvision/NAME or package.module:factory"


def call_factory(name: str, num_classes: int) -> tuple[nn.Module, bool]:
    """Import a factory and call it.

    The working directory can be imported from meanwhile, before everything else; ``sys.path`` is restored.

    Args:
        name: ``package.module:factory``.
        num_classes: passed on under that name, if the factory takes it.

    Returns:
        The model, and whether the factory was told the number of classes.

    Raises:
        ModelError: the module cannot be imported, has no such factory, or the factory fails or returns no module.
    """
    with working_directory_importable():
        factory = _find_factory(name)
        takes = _takes_num_classes(factory)
        try:
            model = factory(num_classes=num_classes) if takes else factory()
        except Exception as error:
            call = f"{name}(num_classes={num_classes})" if takes else f"{name}()"
            raise ModelError(
                f"the factory failed: {call}\n"
                f"  found: {type(error).__name__}: {first_line(error)}\n"
                "  fix: make that call work in Python"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the factory {name} returned a {type(model).__name__}\n"
            "  expected: torch.nn.Module\n  fix: return the model itself"
        )
    return model, takes


def _find_factory(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"no model {name!r}: one side of the colon is empty\n  expected: {FORMS}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise _failed_import(module_name, error) from error
        raise ModelError(
            f"no module {missing!r} for the model {name!r}\n"
            f"  searched: {os.getcwd()}, then the installed packages\n"
            "  fix: run from the folder that holds it, or install its package"
        ) from error
    except Exception as error:
        raise _failed_import(module_name, error) from error
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, _callables(found)) or _callables(found)
            raise ModelError(
                f"the module {module_name!r} has no {attribute!r}\n"
                f"  file: {getattr(module, '__file__', None)}\n"
                f"  nearest names: {name_some(near) or 'none'}\n"
                f"  fix: {module_name}:{near[0] if near else 'FACTORY'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(
            f"{name} is a {type(found).__name__}, which cannot be called\n"
            "  expected: a function or class that returns a torch.nn.Module"
        )
    if isinstance(found, nn.Module):
        raise ModelError(
            f"{name} is a model ({type(found).__name__}), not a factory\n"
            "  fix: name a function that returns it, such as def build(): return MODEL"
        )
    return found


def _failed_import(module_name: str, error: Exception) -> ModelError:
    return ModelError(
        f"the module {module_name!r} cannot be imported\n"
        f"  found: {type(error).__name__}: {first_line(error)}\n"
        f"  fix: make `python -c 'import {module_name}'` work from {os.getcwd()}"
    )


def _callables(found: object) -> list[str]:
    here = found.__name__ if isinstance(found, ModuleType) else None
    return sorted(
        name
        for name, value in getattr(found, "__dict__", {}).items()
        if callable(value) and not name.startswith("_") and (here is None or getattr(value, "__module__", here) == here)
    )


def _takes_num_classes(factory: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some compiled callables have no signature
        return False
    named = parameters.get("num_classes")
    if named is not None:
        return named.kind is not inspect.Parameter.POSITIONAL_ONLY
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
