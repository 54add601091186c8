"""Run a function once a module is imported, without importing it."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_imported(name: str, function: Callable[[ModuleType], None]) -> None:
    """Call ``function`` with the module of this name: now, or right after it is imported."""
    if name in sys.modules:
        function(sys.modules[name])
    else:
        sys.meta_path.insert(0, _WaitingFinder(name, function))


class _WaitingFinder:
    """Finds one module as the other finders do, and has the function called after it has run."""

    def __init__(self, name: str, function: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.function = function

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        # Others may wait for the same module.
        found = (finder.find_spec(name, path, target) for finder in list(sys.meta_path))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.function(module)

            spec.loader.exec_module = execute_and_call
        return spec
