"""Configs as the command line gives them: options, where data are, what is missing."""

import errno
import os
import tempfile
import traceback
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from torch import nn

from crossformer_mm.datasets.paths import move_paths
from crossformer_mm.engine.amp import has_bf16
from crossformer_mm.engine.cfg_options import add_cfg_options, merge_options
from crossformer_mm.models.crossformer import MIN_IMAGE_SIZE
from crossformer_mm.utils.cli import fail
from crossformer_mm.utils.errors import one_line, reason_of
from crossformer_mm.utils.requirements import HOW_TO_INSTALL


def add_config_arguments(parser: ArgumentParser) -> None:
    """Add what every tool takes that reads a config."""
    parser.add_argument("config", help="config file")
    add_cfg_options(parser)


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add what training and testing both take."""
    add_config_arguments(parser)
    amp = "mixed precision: bfloat16 on a CPU that has it"
    parser.add_argument("--amp", action="store_true", help=amp)
    parser.add_argument("--work-dir", help="folder for logs, metrics and checkpoints")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=SUPPRESS)


def load_config(path: str, options: Mapping | None = None, work_dir: str | None = None) -> Config:
    """Read a config and apply what the command line changes.

    A path such as ``mmdet::swin/NAME.py`` is that of an installed library's config. The option
    ``data_root`` moves all paths below the old one. Without ``work_dir``, the folder is the
    config's own or ``work_dirs/NAME``.
    """
    file = _find_library_config(path) if "::" in path else path
    if not os.path.isfile(file):
        fail(f"config {path} {'is not a file' if os.path.exists(file) else 'does not exist'}")
    try:
        cfg = Config.fromfile(file)
    except Exception as error:
        fail(f"config {path} cannot be read: {error}")
    options = dict(options or {})
    if "data_root" in options and "data_root" in cfg:
        new_root = str(options.pop("data_root")).rstrip("/") + "/"
        cfg = Config(move_paths(cfg.to_dict(), cfg.data_root, new_root), filename=cfg.filename)
    merge_options(cfg, options)
    cfg.work_dir = work_dir or cfg.get("work_dir") or f"work_dirs/{Path(path).stem}"
    if os.path.exists(cfg.work_dir) and not os.path.isdir(cfg.work_dir):
        fail(f"the work directory {cfg.work_dir} is not a folder: give another --work-dir")
    scope = cfg.get("default_scope")
    if scope in ("mmpretrain", "mmdet", "mmseg") and find_spec(scope) is None:
        fail(f"config {path} needs {scope}, which is not installed: {HOW_TO_INSTALL}")
    return cfg


# What a library's error means for the config.
MEANINGS = {
    "Expected more than 1 value per channel": (
        "train_dataloader.batch_size=1 is too small for a norm over the batch (BN) that sees one "
        "value of each channel, as in UPerNet's head: give at least 2 for each process"
    ),
}


@contextmanager
def config_errors_in_one_line(cfg: Config) -> Iterator[None]:
    """End the program with one line at an error that comes from a config's entries.

    These are errors of what is built from them, and those of :data:`MEANINGS`.
    """
    try:
        yield
    except Exception as error:
        for text, meaning in MEANINGS.items():
            if text in str(error):
                fail(f"config {cfg.filename}: {meaning}")
        frames = traceback.extract_tb(error.__traceback__)
        builders = [f.name for f in frames if "mmengine" in f.filename and "build" in f.name]
        if not builders:
            raise
        entry = builders[0].replace("build_", "").replace("from_cfg", "model")
        said = error.args[0] if isinstance(error, KeyError) else reason_of(error)
        fail(f"config {cfg.filename}, {entry}: {one_line(str(said))}")


def check_loops(cfg: Config) -> None:
    """Fail if a training would have no steps."""
    for name in ("max_epochs", "max_iters", "val_interval"):
        value = (cfg.get("train_cfg") or {}).get(name, 1)
        if type(value) is not int or value < 1:
            fail(f"train_cfg.{name} must be a whole number, at least 1, not {value!r}")


def _find_library_config(path: str) -> str:
    """The file of ``LIBRARY::FOLDER/NAME.py``; mmengine finds onedl's mmseg under no name."""
    library, _, name = path.partition("::")
    if find_spec(library) is None:  # which mmengine would install
        fail(f"config {path} needs {library}, which is not installed: {HOW_TO_INSTALL}")
    return str(Path(find_spec(library).origin).parent / ".mim/configs" / name)


def type_name(cfg: Mapping) -> str:
    """The name of what a dict of a config builds; pure Python configs have the class itself."""
    kind = cfg.get("type")
    return getattr(kind, "__name__", str(kind)).rpartition(".")[2]


def find_preprocessor(cfg: Config) -> Mapping:
    """The settings of the data preprocessor, which are the model's or the config's own."""
    return cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}


def find_classes(cfg: Config, checkpoint: Mapping, model: nn.Module) -> dict[str, list]:
    """Names and colours of classes from the checkpoint, else from the config's data set."""
    dataset = cfg.test_dataloader.dataset
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        kind = registry.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    known, meta = dict(getattr(kind, "METAINFO", {})), checkpoint.get("meta") or {}
    for more in (dataset.get("metainfo", {}), meta, meta.get("dataset_meta") or {}):
        known |= {key.lower(): value for key, value in more.items() if value}
    classes = [str(name) for name in known.get("classes", ())]
    count = max(getattr(module, "num_classes", None) or 0 for module in model.modules())
    classes += [f"class {label}" for label in range(len(classes), count)]
    palette = known.get("palette", ())
    if len(palette) != len(classes):
        palette = np.random.RandomState(42).randint(0, 256, (len(classes), 3)).tolist()
    return dict(classes=classes, palette=[tuple(colour) for colour in palette])


def takes_rgb(preprocessor: Mapping) -> bool:
    """Whether a model takes images in RGB, by the settings of its data preprocessor."""
    return bool(preprocessor.get("bgr_to_rgb") or preprocessor.get("to_rgb"))  # mmpretrain's name


def check_file(path: str | None, argument: str) -> None:
    """Fail if a local file named on the command line does not exist."""
    file = os.path.expanduser(path or "")  # leaves names of unknown users as they are
    if path is not None and "://" not in path and not os.path.isfile(file):
        fail(f"{argument} {path} {'is not a file' if os.path.exists(file) else 'does not exist'}")


def check_writable(argument: str, path: str, is_folder: bool = False) -> None:
    """Make the folder that is to be written to; fail if that or the file is impossible."""
    target = Path(os.path.expanduser(path))
    folder = target if is_folder else target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_folder and target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fail(f"{argument} {path} cannot be written: {error.strerror}")


def check_device(name: str) -> torch.device:
    """Return the device of a name such as ``'cpu'`` or ``'cuda:1'``; fail if there is none."""
    if name == "meta":
        fail("--device meta computes nothing: give cpu, cuda, cuda:1, ...")
    try:
        return torch.empty(0, device=name).device
    except Exception as error:
        fail(f"--device {name} cannot be used: {str(error).splitlines()[0]}")


def check_amp() -> None:
    """Fail if neither a GPU nor the processor computes in half precision."""
    if not torch.cuda.is_available() and not has_bf16():
        fail("--amp needs a GPU or a processor with instructions for bfloat16: none was found")


def require(cfg: ConfigDict, keys: tuple[str, ...], option: str) -> None:
    """Fail if the config lacks an entry that a command line option needs."""
    if missing := [key for key in keys if key not in cfg]:
        fail(f"{option} needs {missing[0]!r} in the config")


def load_model_config(path: str, options: Mapping | None = None) -> Config:
    """Read a config as :func:`load_config` does; fail if it has no model with a backbone."""
    cfg = load_config(path, options)
    if not isinstance(cfg.get("model"), dict) or "backbone" not in cfg.model:
        fail(f"config {path} has no model with a backbone")
    return cfg


def choose_shape(
    given: Sequence[int] | None, cfg: Mapping, defaults: Mapping[str, tuple[int, int]]
) -> tuple[int, int]:
    """Height and width of images: ``--shape`` (one number is both), or those of the task."""
    scope = cfg.get("default_scope")
    if given is None and scope not in defaults:
        fail(f"the config's default_scope is none of {', '.join(defaults)}: give --shape")
    shape = tuple(given or defaults[scope])
    shape = shape * 2 if len(shape) == 1 else shape
    if len(shape) != 2 or min(shape) < MIN_IMAGE_SIZE:
        numbers = " ".join(map(str, shape))
        fail(f"--shape {numbers}: give height and width, at least {MIN_IMAGE_SIZE}")
    return shape
