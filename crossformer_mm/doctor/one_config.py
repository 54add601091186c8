"""Whether a config could be trained: its parts are built as the runner does, without data."""

from collections.abc import Callable

from mmengine.config import Config
from mmengine.registry import DefaultScope

from crossformer_mm.data_paths import find_missing_data
from crossformer_mm.doctor import rehearsal
from crossformer_mm.doctor.findings import Finding, attempt
from crossformer_mm.doctor.libraries import import_library
from crossformer_mm.doctor.shipped_configs import DATA_ADVICE, LOADERS
from crossformer_mm.launch import SCOPES, load_config

NEEDED = ("model", "train_dataloader", "train_cfg", "optim_wrapper")
# The runner takes all of a row or none.
OPTIONAL = tuple(
    tuple(f"{phase}_{part}" for part in ("dataloader", "cfg", "evaluator"))
    for phase in ("val", "test")
)
PARTS: dict[str, tuple[Callable[[Config], str], str]] = {
    "model": (rehearsal.build_model, "model"),
    "weights": (rehearsal.read_weights, "init_cfg and load_from"),
    "optimizer": (rehearsal.build_optimizer, "optim_wrapper and param_scheduler"),
    "loops": (rehearsal.find_loops, "train_cfg, val_cfg and the data loaders' samplers"),
    "data sets": (rehearsal.build_data_sets, "dataset of the data loaders"),
    "metrics": (rehearsal.build_metrics, "val_evaluator"),
    "hooks": (rehearsal.build_hooks, "visualizer, default_hooks and custom_hooks"),
}
NEEDS_MODEL = ("weights", "optimizer")
NEEDS_DATA = ("metrics",)


def examine_config(path: str, data_root: str | None) -> list[Finding]:
    """A finding for each part of a config.

    Args:
        path: The config.
        data_root: Where its data is, if not where it says.
    """
    configs = []

    def load() -> str:
        configs.append(load_config(path, {"data_root": data_root} if data_root else None))
        return path

    loaded = attempt("config", load, "correct it, or install what it names")
    if loaded.stops_training:
        return [loaded]
    (cfg,) = configs
    lacking = _lacking(cfg)
    if lacking:
        advice = "inherit from one of the shipped configs, with _base_"
        return [Finding("config", f"{path} has no {', '.join(lacking)}", advice, True)]
    if cfg.get("default_scope") in SCOPES:
        library = import_library(cfg.default_scope)
        if library.stops_training:
            return [library]
    return [loaded, *_rehearse(cfg)]


def _lacking(cfg: Config) -> list[str]:
    """The entries without which the runner does not start."""
    lacking = [key for key in NEEDED if not cfg.get(key)]
    for row in OPTIONAL:
        absent = [key for key in row if cfg.get(key) is None]
        lacking += absent if len(absent) < len(row) else []
    return lacking


def _rehearse(cfg: Config) -> list[Finding]:
    missing = find_missing_data(cfg, LOADERS)
    findings = [
        Finding("data", missing or "all there", DATA_ADVICE if missing else "", bool(missing))
    ]
    rehearsal.prepare(cfg)
    left_out = NEEDS_DATA if missing else ()
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        for topic, (build, keys) in PARTS.items():
            if topic not in left_out:
                advice = f"correct {keys} in the config, or install what it names"
                findings.append(attempt(topic, lambda build=build: build(cfg), advice))
                if topic == "model" and findings[-1].stops_training:
                    left_out = (*left_out, *NEEDS_MODEL)
    return findings
