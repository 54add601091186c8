"""Whether one shipped config of each library could be trained: the library, and the data."""

from crossformer_mm.datasets.paths import find_missing_data
from crossformer_mm.doctor.findings import Finding, attempt
from crossformer_mm.doctor.libraries import import_library
from crossformer_mm.engine.launch import fail, load_config
from crossformer_mm.registry import find_index_root

# All configs of a library but the toy ones read the same data.
CONFIGS = {
    "mmpretrain": "classification/crossformer-small_8xb128_in1k.py",
    "mmdet": "detection/mask-rcnn_crossformer-s_fpn_1x_coco.py",
    "mmseg": "segmentation/fpn_crossformer-s_4xb4-80k_ade20k-512x512.py",
}
LOADERS = ("train_dataloader", "val_dataloader")
DATA_ADVICE = (
    "put the data there (docs/data.md) or set --cfg-options data_root=DIR; "
    "tools/make_toy_dataset.py draws a small set to try with"
)


def examine_shipped_configs() -> list[Finding]:
    """A finding for each library; one without a problem is enough to train."""
    findings = []
    for library, config in CONFIGS.items():
        finding = import_library(library)
        if not finding.stops_training:
            finding = attempt(library, lambda name=config: _find_data(name), DATA_ADVICE)
        findings.append(finding._replace(is_alternative=True))
    return findings


def _find_data(config: str) -> str:
    root = find_index_root()
    if root is None:
        fail("the shipped configs are missing: install crossformer_mm again")
    cfg = load_config(str(root / "configs" / config))
    missing = find_missing_data(cfg, LOADERS)
    if missing:
        fail(f"expects data in {cfg.data_root}: {missing}")
    return f"data in {cfg.data_root}"
