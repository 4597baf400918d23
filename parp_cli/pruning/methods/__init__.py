"""The pruning methods, by the name that a recipe gives as `pruning.method`.

Each is one `MethodSpec` in one file of this folder; nothing outside of it knows their names. A file that is added here
is found by itself, and `register` adds a method from anywhere else. Importing this package, or any of its files, does
not import torch.
"""

import pkgutil
from functools import cache
from importlib import import_module

from parp_cli.errors import UsageError
from parp_cli.pruning.methods.spec import Method, MethodSpec, Run, Schedule, Settings, Snapshot

__all__ = ["Method", "MethodSpec", "Run", "Schedule", "Settings", "Snapshot", "all_specs", "register", "spec_of"]


@cache
def all_specs() -> dict[str, MethodSpec]:
    """Every method by its name."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, MethodSpec)]
    return {spec.name: spec for spec in found}


def spec_of(name: str) -> MethodSpec:
    """The method of this name. Raises UsageError where there is none."""
    if name not in all_specs():
        raise UsageError(f"there is no pruning method {name!r}", hint=f"one of {', '.join(all_specs())}")
    return all_specs()[name]


def register(spec: MethodSpec) -> MethodSpec:
    """Make a method available to recipes, in this process. Raises ValueError where its name is taken."""
    if spec.name in all_specs():
        raise ValueError(f"there is a pruning method {spec.name!r} already")
    all_specs()[spec.name] = spec
    return spec
