"""The figure of ``tools/plot_log.py``: curves of one or more runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from crossformer_mm.visualization.canvas import LABEL_SIZE, TITLE_SIZE, blank, make_grid
from crossformer_mm.visualization.errors import VisualizationError
from crossformer_mm.visualization.training_log import Run

DEFAULT_KEYS = ("loss", "lr")
# The metric that each library's papers report.
MAIN_METRICS = ("*/top1", "*bbox_mAP", "*segm_mAP", "mIoU")
COLUMNS = 3
MANY_POINTS = 40
FEW_PLACES = 6

Panel = tuple[str, str]  # key and axis


def choose_panels(runs: Sequence[Run], keys: Sequence[str] | None) -> list[Panel]:
    """Choose what to draw: all curves whose key matches, in the order of ``keys``.

    Args:
        runs: The runs.
        keys: Names, or patterns such as ``coco/*``. None: loss, learning rate and the main
            metrics; all metrics, where none is known to be the main one.

    Raises:
        VisualizationError: If a key matches nothing in any run.
    """
    known = list(dict.fromkeys(panel for run in runs for panel in run.curves))
    if keys is None:
        metrics = set().union(*(run.metrics for run in runs))
        main = [m for m in metrics if any(fnmatchcase(m, pattern) for pattern in MAIN_METRICS)]
        wanted = {*DEFAULT_KEYS, *(main or metrics)}
        chosen = [panel for panel in known if panel[0] in wanted]
        chosen.sort(key=lambda panel: (DEFAULT_KEYS + panel[:1]).index(panel[0]))
        return chosen or known
    chosen = []
    for key in keys:
        matching = [p for p in known if p[0] == key or fnmatchcase(p[0], key)]
        if not matching:
            names = ", ".join(sorted({name for name, _ in known}))
            raise VisualizationError(f"--keys {key}: the logs have {names}")
        chosen += [panel for panel in matching if panel not in chosen]
    return chosen


def choose_labels(runs: Sequence[Run], paths: Sequence[str], legend: Sequence[str] | None) -> list:
    """Name the runs: as ``legend`` says, or by their folders, or by paths where those are equal.

    Raises:
        VisualizationError: If there are not as many names as runs.
    """
    if legend is None:
        count = Counter(run.name for run in runs)
        return [
            run.name if count[run.name] == 1 else path
            for run, path in zip(runs, paths, strict=True)
        ]
    if len(legend) != len(runs):
        raise VisualizationError(
            f"--legend has {len(legend)} names for {len(runs)} runs: give one for each"
        )
    return list(legend)


def draw_curves(runs: Sequence[Run], panels: Sequence[Panel], labels: Sequence[str]) -> Figure:
    """Draw a panel for each key, with a curve for each run that has it."""
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = make_grid(rows, columns, (3.9, 2.8), "")
    curves: dict[int, Line2D] = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        curves |= _draw_panel(axes, runs, panel, labels)
    blank(list(grid.flat)[len(panels) :])
    _draw_legend(figure, {index: curves[index] for index in sorted(curves)}, labels)
    return figure


def _draw_legend(figure: Figure, curves: Mapping[int, Line2D], labels: Sequence[str]) -> None:
    """Name the runs, by index, of which there are curves."""
    legend = figure.legend(
        list(curves.values()),
        [labels[index] for index in curves],
        loc="outside upper center",
        ncols=min(len(curves), COLUMNS),
        fontsize=LABEL_SIZE,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_panel(
    axes: Axes, runs: Sequence[Run], panel: Panel, labels: Sequence[str]
) -> dict[int, Line2D]:
    """Draw the curves of one key, and return them by the index of their run."""
    key, axis = panel
    drawn = {}
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        curve = sorted(run.curves.get(panel, {}).items())
        if curve:
            marker = "o" if len(curve) <= MANY_POINTS else None
            places, values = zip(*curve, strict=True)
            look = dict(color=f"C{index % 10}", marker=marker, ms=3.5, lw=1.5)
            (drawn[index],) = axes.plot(places, values, label=label, **look)
    axes.set_title(key, fontsize=TITLE_SIZE, parse_math=False)
    axes.set_xlabel(axis, fontsize=LABEL_SIZE)
    places = {place for run in runs for place in run.curves.get(panel, {})}
    if len(places) <= FEW_PLACES:
        axes.set_xticks(sorted(places))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=FEW_PLACES, integer=True))
    axes.grid(alpha=0.3)
    return drawn
