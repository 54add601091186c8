"""Try the tools of mmdet, mmseg and mmpretrain on this project's toy configs.

Each runs in a process of its own, on small data and models trained for a moment. All take six
minutes on two CPU cores. Prints the table that docs/library_tools.md has.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import numpy as np

from crossformer_mm.utils.cli import OneLineParser, fail, run
from crossformer_mm.utils.errors import one_line

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("library", "tool", "needs besides", "as it ships", "after a line of Python")
MEMORY = 16 * 2**20  # KiB that each may fill: one asks for 26 GB
ERROR = re.compile(r"^(?:\w+\.)*\w*[Ee]rror\b.*", re.MULTILINE)
RUN = (
    "import runpy, sys; sys.argv = sys.argv[1:]; sys.path[0] = sys.argv[0].rpartition('/')[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


class LibraryTool(NamedTuple):
    """A tool to try, and its other arguments, as a shell takes them.

    ``proof`` is a regular expression of what it prints, or of ``left FILE`` in the folder ``out``;
    ``needs`` is what the libraries do not require; ``mend`` is Python after which it runs.
    """

    library: str
    tool: str
    arguments: str
    proof: str
    needs: str = ""
    mend: str = ""


CHECKPOINTS = dict(mmdet="epoch_2", mmseg="iter_4", mmpretrain="epoch_2")
CONFIGS = dict(
    mmdet="detection/mask-rcnn_crossformer-nano_fpn_toy-coco",
    mmseg="segmentation/fpn_crossformer-nano_toy-ade",
    mmpretrain="classification/crossformer-nano_toy-imagenet",
)
# Commands that make the folders which tools read, each from the one before. mmseg's benchmark.py
# counts 200 images; two epochs make a detector sure of nothing.
STAGES = dict(
    data=dict(
        mmdet="coco data/toy_coco --train 16 --val 16",
        mmseg="ade data/toy_ade --train 16 --val 200 --size 128 96",
        mmpretrain="imagenet data/toy_imagenet --train 40 --val 40 --size 128 96",
    ),
    trained=dict(
        mmdet="train_cfg.max_epochs=2",
        mmseg="train_cfg.max_iters=4 default_hooks.checkpoint.interval=4",
        mmpretrain="train_cfg.max_epochs=2 default_hooks.checkpoint.interval=2",
    ),
    predicted=dict(
        mmdet="test_evaluator.outfile_prefix=predicted/coco model.test_cfg.rcnn.score_thr=0.0",
        mmseg="test_evaluator.output_dir=predicted/labels",
        mmpretrain="test_evaluator._delete_=True test_evaluator.type=ShapeBiasMetric "
        "test_evaluator.csv_dir=predicted/csv test_evaluator.model_name=crossformer",
    ),
)
COMMANDS = dict(
    data="make_toy_dataset.py ",
    trained="train.py {config} --work-dir trained --cfg-options train_cfg.val_begin=9 "
    "default_hooks.logger.interval=1 ",
    predicted="test.py {config} {checkpoint} --work-dir predicted --out predicted/all.pkl "
    "--cfg-options ",
)
BROWSE, FLOPS = "{config} --not-show --output-dir out", r"Flops: [\d.]*[1-9][\d.]*[GM]\s"
SHAPE_BIAS = "--csv-dir predicted/csv --result-dir out --model-names crossformer --markers o "
TSNE = "{config} --checkpoint {checkpoint} --work-dir out --max-num-class 1000 --perplexity 5"
ERRORS = "predicted/coco.bbox.json out --ann data/toy_coco/annotations/instances_val2017.json"
FIGURE = "import matplotlib.pyplot as p; f = p.subplots; p.subplots = lambda **_: f(figsize={})"
CONTIGUOUS = (
    "import cv2, numpy as n; f = cv2.rectangle; "
    "cv2.rectangle = lambda a, *more: f(n.ascontiguousarray(a), *more)"
)
UNSAFE = "import os; os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'"
# fmt: off
TOOLS = tuple(LibraryTool(*row) for row in (
    ("mmdet", "analysis_tools/browse_dataset.py", BROWSE, r"left \d+\.jpg"),
    ("mmdet", "analysis_tools/confusion_matrix.py", "{config} predicted/all.pkl out",
     "left confusion_matrix.png"),
    ("mmdet", "analysis_tools/analyze_results.py", "{config} predicted/all.pkl out --topk 2",
     r"left good/\d+_.*\.jpg"),
    ("mmdet", "analysis_tools/analyze_logs.py cal_train_time", "trained/*/vis_data/scalars.json",
     r"average iter time: \d+\.\d+ s/iter"),
    ("mmdet", "analysis_tools/analyze_logs.py plot_curve",
     "trained/*/vis_data/scalars.json --keys loss --out out/loss.png", "left loss.png", "",
     "import sys; sys.argv += ['--style', 'ggplot']"),
    ("mmdet", "analysis_tools/benchmark.py --task inference",
     "{config} --checkpoint {checkpoint} --max-iter 16", r"Overall fps: [\d.]+ img/s",
     "psutil, an NVIDIA GPU"),
    ("mmdet", "analysis_tools/benchmark.py --task dataloader", "{config} --max-iter 16",
     r"Overall fps: [\d.]+ batch/s", "psutil"),
    ("mmdet", "analysis_tools/get_flops.py", "{config} --num-images 2", FLOPS),
    ("mmdet", "analysis_tools/coco_error_analysis.py", ERRORS,
     "left bbox/bbox-allclass-allarea.png"),
    ("mmseg", "analysis_tools/browse_dataset.py", BROWSE, r"left ADE_\w+\.jpg", "", CONTIGUOUS),
    ("mmseg", "analysis_tools/benchmark.py", "{config} {checkpoint} --work-dir out",
     r"Average fps of 1 evaluations: [\d.]+[\s\S]*left fps_\w+\.json"),
    ("mmseg", "analysis_tools/confusion_matrix.py", "{config} predicted/labels out",
     "left confusion_matrix.png", "", FIGURE.format((60, 48))),
    ("mmseg", "analysis_tools/get_flops.py", "{config} --shape 128 128", FLOPS),
    ("mmpretrain", "visualization/vis_cam.py",
     "data/toy_imagenet/val/*/*01.JPEG {config} {checkpoint} --save-path out/cam.jpg",
     "left cam.jpg", "grad-cam"),
    ("mmpretrain", "visualization/vis_tsne.py", TSNE, r"left tsne_\w+/feat_3.png", "scikit-learn"),
    ("mmpretrain", "analysis_tools/shape_bias.py", SHAPE_BIAS + "--colors 0 0 255",
     "left cue-conflict_shape-bias_matrixplot.pdf", "pandas",
     "import pandas as p; p.DataFrame.append = lambda *tables: p.concat(tables)"),
    ("mmpretrain", "analysis_tools/get_flops.py", "{config} --shape 112", FLOPS),
    ("mmpretrain", "misc/print_config.py", "{config}", "type='CrossFormer'"),
    ("mmpretrain", "model_converters/publish_model.py", "{checkpoint} out/published.pth",
     r"left published_\w+-\w+\.pth", "", UNSAFE),
))
# fmt: on


def name_of(tool: LibraryTool) -> str:
    """The library and the tool, without the folder that it is in."""
    return f"{tool.library}/{Path(tool.tool.split()[0]).stem}"


def execute(command: str, library: str, folder: Path) -> subprocess.CompletedProcess:
    """Run Python in a folder, with arguments for a shell that name config and checkpoint."""
    config = shlex.quote(f"{ROOT}/configs/{CONFIGS[library]}.py")
    checkpoint = f"trained/{CHECKPOINTS[library]}.pth"
    command = command.replace("{config}", config).replace("{checkpoint}", checkpoint)
    return subprocess.run(
        f"ulimit -d {MEMORY}; exec {shlex.quote(sys.executable)} {command}",
        shell=True,
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def error_of(result: subprocess.CompletedProcess) -> str:
    """The last error that a process printed, or its exit status, in one line."""
    errors = ERROR.findall(result.stdout)
    return f"`{one_line(errors[-1], 80)}`" if errors else f"exit status {result.returncode}"


def prepare(tool: LibraryTool, folder: Path) -> None:
    """Copy a library's tools, and make what the arguments of this one name."""
    if not folder.exists():
        installed = Path(find_spec(tool.library).origin).parent / ".mim/tools"
        shutil.copytree(installed, folder / "tools")  # some write beside themselves
    stages = list(STAGES)
    named = tool.arguments.replace("{checkpoint}", "trained")
    last = max((stages.index(stage) for stage in stages if stage in named), default=0)
    for stage in stages[: last + 1]:
        if not (folder / stage).exists():
            command = COMMANDS[stage] + STAGES[stage][tool.library]
            result = execute(f"{shlex.quote(str(ROOT))}/tools/{command}", tool.library, folder)
            if result.returncode:
                fail(f"tools/{command} ended with {error_of(result)}")
            if (tool.library, stage) == ("mmpretrain", "predicted"):
                complete_cue_conflict(folder)


def complete_cue_conflict(folder: Path) -> None:
    """Put answers to two categories, and a human's, in place of the metric's; draw the icons.

    The tool would download the icons, and divides by zero where nothing is a shape or a texture.
    """
    [answers] = folder.glob("predicted/csv/*.csv")
    rows = answers.read_text().splitlines()[:1]
    for name in ("crossformer", "subject-01"):
        rows += [f"{name},1,1,NaN,cat,cat,NaN,cat1-dog1.png"]
        rows += [f"{name},1,2,NaN,cat,dog,NaN,dog1-cat1.png"]
    answers.write_text("\n".join(rows))
    image = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    icons = folder / "resources/shape_bias_icons"
    icons.mkdir(parents=True)
    source = (folder / "tools/analysis_tools/shape_bias.py").read_text()
    for name in re.findall(r"'(\w+\.(?:png|pdf))'", source):
        (icons / name).write_bytes(image)


def try_tool(tool: LibraryTool, folder: Path, before: str = "") -> str:
    """Run a library's tool, after a line of Python or as it is: ``'ok'``, or why not."""
    if not (folder / "tools" / tool.tool.split()[0]).is_file():
        return "not in this version"
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    start = f"-c {shlex.quote(f'{before}; {RUN}')} " if before else ""
    result = execute(f"{start}tools/{tool.tool} {tool.arguments}", tool.library, folder)
    left = [f"left {file.relative_to(out)}" for file in out.rglob("*") if file.is_file()]
    if result.returncode == 0 and re.search(tool.proof, "\n".join([result.stdout, *left])):
        return "ok"
    return error_of(result)


def make_row(tool: LibraryTool, folder: Path) -> str:
    """A line of the table."""
    shipped, mended = try_tool(tool, folder), ""
    if shipped != "ok" and tool.mend:
        mended = f"{try_tool(tool, folder, tool.mend)}: `{tool.mend}`"
    return f"| {tool.library} | `{tool.tool}` | {tool.needs} | {shipped} | {mended} |\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Try the tools and print the table."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("tools", nargs="*", metavar="LIBRARY/TOOL", help="all if not given")
    chosen = parser.parse_args(argv).tools
    names = list(dict.fromkeys(map(name_of, TOOLS)))
    for name in chosen:
        if name not in names:
            fail(f"there is no tool {name!r}: the names are {', '.join(names)}")
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|", flush=True)
    with TemporaryDirectory() as folder:
        for tool in TOOLS:
            if name_of(tool) in (chosen or names):
                prepare(tool, Path(folder, tool.library))
                print(make_row(tool, Path(folder, tool.library)), end="", flush=True)


if __name__ == "__main__":
    run(main)
