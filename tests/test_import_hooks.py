"""Functions that wait for a module."""

import importlib
import sys

from crossformer_mm.utils.import_hooks import when_imported


def test_everyone_who_waits_is_called_once_the_module_has_run(monkeypatch, tmp_path):
    (tmp_path / "awaited_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders, seen = list(sys.meta_path), []
    for caller in ("first", "second"):
        when_imported(
            "awaited_module", lambda module, caller=caller: seen.append((caller, module.value))
        )
    assert "awaited_module" not in sys.modules and not seen
    importlib.import_module("awaited_module")
    assert sorted(seen) == [("first", 1), ("second", 1)]
    assert sys.meta_path == finders
    when_imported("awaited_module", lambda module: seen.append(("late", module.value)))
    assert seen[-1] == ("late", 1)
    del sys.modules["awaited_module"]
