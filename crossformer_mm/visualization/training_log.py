"""The scalars that mmengine logs in a run, which may have been stopped and resumed."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from crossformer_mm.visualization.errors import VisualizationError

ITERATION, EPOCH = "iteration", "epoch"
# What says where a line belongs, not what was measured.
COUNTERS = ("step", "iter", "epoch")
MAX_COUNT = 2**53  # no run is that long, and a float64 can tell no larger ones apart

Curve = dict[int, float]  # iteration or epoch -> value


@dataclass
class Run:
    """The curves of a run, by key and axis (:data:`ITERATION` or :data:`EPOCH`).

    ``metrics`` are the keys that were logged in validation. ``unreadable`` counts lines that are
    no JSON object, such as one that was being written when the process was killed, or whose
    iteration, epoch or step is no number.
    """

    name: str
    curves: dict[tuple[str, str], Curve] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)
    unreadable: int = 0


def read_run(path: str | Path) -> Run:
    """Read a run from a log file, or from all logs of a work directory in order of time.

    Where a resumed run repeats iterations of the one before it, the later one counts.

    Args:
        path: A work directory, one of its ``<timestamp>`` folders, or a log file: ``scalars.json``
            or ``<timestamp>.json``.

    Raises:
        VisualizationError: If there is no log, or nothing in it.
    """
    path = Path(path)
    run = Run(_name_of(path))
    for log in find_logs(path):
        _append(run, _read_lines(log, run))
    if not run.curves:
        raise VisualizationError(f"{path}: the log has no data")
    return run


def find_logs(path: Path) -> list[Path]:
    """List the log files of a run, oldest first; see :func:`read_run`.

    Raises:
        VisualizationError: If there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise VisualizationError(f"{path} does not exist: give a log file or a work directory")
    folders = [path, path / "vis_data", *sorted(path.glob("*/vis_data"))]
    logs = [log for folder in folders if (log := _log_in(folder)) is not None]
    if not logs:
        raise VisualizationError(
            f"{path} holds no log: expected <timestamp>/vis_data/scalars.json below it"
        )
    return logs


def _log_in(folder: Path) -> Path | None:
    """mmengine writes the same lines into both files."""
    if (folder / "scalars.json").is_file():
        return folder / "scalars.json"
    if folder.name != "vis_data":
        return None
    return next(iter(sorted(folder.glob("[0-9]*.json"))), None)


def _name_of(path: Path) -> str:
    """The work directory's name, if the path is inside one: DIR/<timestamp>/vis_data/FILE."""
    path = path.absolute()
    parents = [path, *path.parents]
    if path.is_file() and path.parent.name == "vis_data":
        return parents[3].name
    if path.name == "vis_data":
        return parents[2].name
    if (path / "vis_data").is_dir():
        return parents[1].name
    return path.stem if path.is_file() else path.name


def _read_lines(log: Path, run: Run) -> list[dict]:
    lines = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            record = None
        if isinstance(record, dict) and all(_is_count(record.get(key, 0)) for key in COUNTERS):
            lines.append(record)
        elif line.strip():
            run.unreadable += 1
    return lines


def _is_count(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < MAX_COUNT


def _append(run: Run, lines: list[dict]) -> None:
    """Add the lines of one log, in place of what an earlier log has from there on."""
    training = [line for line in lines if "iter" in line]
    if training:
        first = {ITERATION: training[0]["iter"], EPOCH: training[0].get("epoch", 0)}
        for (_, axis), curve in run.curves.items():
            for place in [place for place in curve if place >= first[axis]]:
                del curve[place]
    for line, axis, place in _locate(lines):
        for key, value in line.items():
            if key in COUNTERS or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            is_metric = "iter" not in line
            if is_metric and key in ("time", "data_time"):
                continue  # of validation; training has curves of these names
            run.curves.setdefault((key, axis), {})[place] = value
            run.metrics |= {key} if is_metric else set()


def _locate(lines: Iterable[dict]) -> Iterable[tuple[dict, str, int]]:
    """Say for each line on which axis it has which place.

    The step of a metric is an epoch or an iteration, and the log does not say which: it is an
    iteration if training, which counts both, has got there in iterations.
    """
    epoch, iteration = None, 0
    for line in lines:
        if "iter" in line:
            epoch, iteration = line.get("epoch"), line["iter"]
            yield line, ITERATION, iteration
        elif "step" in line:
            by_epoch = epoch is not None and (line["step"] == epoch or line["step"] < iteration)
            yield line, EPOCH if by_epoch else ITERATION, line["step"]
