"""Build the parts of a config as the runner does, but no data loaders, and no memory for weights.

Each function returns a few words on what it built, and lets errors through.
"""

import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib.util import find_spec
from inspect import isclass
from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    FUNCTIONS,
    HOOKS,
    LOOPS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
    Registry,
)

# These register what configs name.
from crossformer_mm import flops, layer_decay, loss_check, models, transforms  # noqa: F401
from crossformer_mm.checkpoint_loading import load_from_safe, use_safe_loader
from crossformer_mm.hooks import CheckpointMatchHook
from crossformer_mm.launch import replace_gpu_only_parts

# The modules that mmengine's visualization backends import when they write for the first time.
MODULES_OF_BACKENDS = {
    "AimVisBackend": "aim",
    "ClearMLVisBackend": "clearml",
    "DVCLiveVisBackend": "dvclive",
    "MLflowVisBackend": "mlflow",
    "NeptuneVisBackend": "neptune",
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
}
LOGGER = "crossformer_mm.doctor"
ITERATIONS = 1000  # of an epoch, for schedules that count iterations


def prepare(cfg: Config) -> None:
    """Change the config as the tools do before they build a runner, and keep mmengine silent."""
    if not torch.cuda.is_available():
        replace_gpu_only_parts(cfg)
    use_safe_loader()
    MMLogger.get_instance(LOGGER).setLevel("CRITICAL")


def build_model(cfg: Config) -> str:
    """Build the model, without memory for its weights."""
    model = flops.build_on_meta(cfg)
    return f"{type(model).__name__} of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"


def read_weights(cfg: Config) -> str:
    """Initialise the model from the files that the config names, and compare ``load_from``."""
    start = [d["checkpoint"] for d in _mappings(cfg.model) if d.get("type") == "Pretrained"]
    names = [str(name) for name in (*start, cfg.get("load_from")) if name]
    if not names:
        return "random"
    remote = [name for name in names if "://" in name]
    if remote:
        return f"not looked at, as training downloads {', '.join(remote)}"
    model = flops.build_model(cfg) if start else flops.build_on_meta(cfg)
    if start:
        model.init_weights()
    if cfg.get("load_from"):
        runner = SimpleNamespace(model=model, logger=logging.getLogger(LOGGER))
        resumes = cfg.get("resume", False)
        if resumes:
            runner.optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        hook = CheckpointMatchHook(all_weights_needed=resumes, resumes=resumes)
        hook.after_load_checkpoint(runner, load_from_safe(cfg.load_from, "cpu"))
    return f"{', '.join(names)} fit"


def build_optimizer(cfg: Config) -> str:
    """Build the optimizer and its schedules."""
    _look_up(OPTIMIZERS, cfg.optim_wrapper.get("optimizer"))
    wrapper = build_optim_wrapper(flops.build_on_meta(cfg), cfg.optim_wrapper)
    if not isinstance(wrapper, OptimWrapper):  # one of several optimizers
        return type(wrapper).__name__
    schedules = cfg.get("param_scheduler") or []
    for schedule in schedules if isinstance(schedules, (list, tuple)) else [schedules]:
        PARAM_SCHEDULERS.build(
            deepcopy(schedule), default_args=dict(optimizer=wrapper, epoch_length=ITERATIONS)
        )
    return type(wrapper.optimizer).__name__


def find_loops(cfg: Config) -> str:
    """Look up the loops, and what the data loaders are made of."""
    _look_up(LOOPS, cfg.train_cfg)
    _look_up(LOOPS, cfg.get("val_cfg"))
    for loader in _loaders(cfg):
        for registry, key in (
            (DATA_SAMPLERS, "sampler"),
            (DATA_SAMPLERS, "batch_sampler"),
            (FUNCTIONS, "collate_fn"),
        ):
            _look_up(registry, loader.get(key))
    return "are known"


def build_data_sets(cfg: Config) -> str:
    """Build the data sets with their transforms, without reading annotations."""
    found = []
    for loader in _loaders(cfg):
        _look_up(DATASETS, loader["dataset"])
        for options in _mappings(loader["dataset"]):
            kind = _find(DATASETS, options.get("type"))
            if isclass(kind) and issubclass(kind, BaseDataset):
                DATASETS.build(deepcopy(options), default_args=dict(lazy_init=True))
                found.append(kind.__name__)
            else:
                Compose(deepcopy(options.get("pipeline") or []))
    return ", ".join(sorted({*found})) or "of unknown kinds"


def build_metrics(cfg: Config) -> str:
    """Build the validation's metrics, some of which read the annotations."""
    options = cfg.get("val_evaluator")
    if options is None:
        return "none: training does not validate"
    if "metrics" in options:
        options = options["metrics"]
    return ", ".join(type(metric).__name__ for metric in Evaluator(deepcopy(options)).metrics)


def build_hooks(cfg: Config) -> str:
    """Build the visualizer, which hooks ask for, and the hooks."""
    visualizer = deepcopy(cfg.get("visualizer") or dict(type="Visualizer"))
    for backend in visualizer.pop("vis_backends", None) or []:
        _look_up(VISBACKENDS, backend)
        module = MODULES_OF_BACKENDS.get(backend["type"])
        if module and find_spec(module) is None:
            raise ModuleNotFoundError(f"{backend['type']} needs {module}: pip install {module}")
    visualizer.setdefault("name", LOGGER)
    VISUALIZERS.build(visualizer)
    options = [*cfg.get("default_hooks", {}).values(), *(cfg.get("custom_hooks") or [])]
    for hook in options:
        if hook is not None:
            HOOKS.build({key: value for key, value in hook.items() if key != "priority"})
    return "can be built"


def _loaders(cfg: Config) -> list[Mapping]:
    return [cfg[key] for key in ("train_dataloader", "val_dataloader") if cfg.get(key)]


def _mappings(value: object) -> Iterator[Mapping]:
    """All mappings in nested mappings and lists."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from _mappings(entry)


def _look_up(registry: Registry, options: Mapping | None) -> None:
    """Raise KeyError if the registry does not have the type that the options name."""
    kind = (options or {}).get("type")
    if kind is not None and _find(registry, kind) is None:
        raise KeyError(f"{kind} is not in the registry of {registry.name}s")


def _find(registry: Registry, kind: object) -> object:
    """What the name of a type stands for in the current scope, or None."""
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(kind)
