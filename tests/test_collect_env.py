"""What is installed, and what stops training, as collect_env says it."""

import sys

import pytest

from crossformer_mm.utils import collect_env as env

pytestmark = pytest.mark.families


def test_the_report_names_the_versions_and_nothing_is_wrong(capsys):
    with pytest.raises(SystemExit) as exit_info:
        env.main()
    said = capsys.readouterr().out
    assert exit_info.value.code == 0, said
    for name in ("PyTorch: ", "crossformer_mm: ", "mmengine (", "mmcv (", "mmpretrain ("):
        assert name in said


def installed(monkeypatch, *names: str) -> None:
    """Only these distributions are there."""
    monkeypatch.setattr(env, "version_of", lambda name: "1.0" if name in names else None)


@pytest.mark.fault("the set-up, broken installs")
@pytest.mark.parametrize(
    ("distributions", "problem"),
    [
        (("onedl-mmengine", "mmdet"), "both families"),
        (("mmengine", "mmcv"), "none of mmpretrain, mmdet and mmseg is installed"),
    ],
)
def test_what_is_missing_or_mixed_is_said_with_what_to_install(monkeypatch, distributions, problem):
    installed(monkeypatch, *distributions)
    (found,) = env.find_problems()
    assert problem in found and "pip install" in found


@pytest.mark.fault("the set-up, broken installs")
@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("mmcv", "mmcv cannot be imported"),
        ("mmdet.models", "mmdet.models cannot be imported"),
        ("mmcv.ops", "mmcv's operators cannot run"),
    ],
)
def test_a_broken_library_is_named(monkeypatch, module, problem):
    monkeypatch.setitem(sys.modules, module, None)
    (found,) = (line for line in env.find_problems() if "cannot" in line)
    assert problem in found and "pip install" in found
