"""All that the doctor looks at, in an order in which each needs what comes before it."""

import platform
from collections.abc import Callable, Sequence

from crossformer_mm.doctor.findings import Finding
from crossformer_mm.doctor.hardware import find_gpu, find_triton
from crossformer_mm.doctor.libraries import (
    find_family,
    import_mmcv,
    import_mmengine,
    import_numpy,
    import_opencv,
    import_torch,
    run_mmcv_operator,
)

# If one of a row fails, what is wrong with the rest of the row cannot be told.
Row = Sequence[Callable[[], Finding]]
INSTALLED: Sequence[Row] = ((import_numpy, import_torch), (find_family,))
USABLE: Sequence[Row] = (
    (find_gpu, find_triton),
    (import_opencv, import_mmengine, import_mmcv, run_mmcv_operator),
)


def examine() -> list[Finding]:
    """Look at everything."""
    findings = [Finding("python", platform.python_version())]
    for rows in (INSTALLED, USABLE):
        for row in rows:
            findings += _until_one_fails(row)
        if any(finding.stops_training for finding in findings):
            return findings
    # It needs the libraries.
    from crossformer_mm.doctor.shipped_configs import examine_shipped_configs

    return findings + examine_shipped_configs()


def _until_one_fails(row: Row) -> list[Finding]:
    findings = []
    for look in row:
        findings.append(look())
        if findings[-1].stops_training:
            break
    return findings
