"""Sizes and costs against the published tables, which tools/get_flops.py has to reproduce."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from conftest import CONFIGS, ROOT, complexity_of, tool_main
from torch import nn

from crossformer_mm.analysis.flops import measure
from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_on_meta

MMDET_CONFIGS = Path(find_spec("mmdet").origin).parent / ".mim/configs"

# Millions of parameters and billions of multiply-adds, published by the authors; but for pp-small's
# classifier and RetinaNet, whose published FLOPs are other models', measured with their code.
PUBLISHED = {
    "classification/crossformer-{}_8xb128_in1k": """
        tiny 27.8 2.9 | small 30.7 4.9 | base 52.0 9.2 | large 92.0 16.1 | pp-small 23.3 4.4 |
        pp-base 52.0 9.5 | pp-large 92.0 16.6 | pp-huge 96.0 21.8""",
    "detection/retinanet_crossformer-{}_fpn_1x_coco": """
        s 40.8 282.0 | s-g14 40.8 272.1 | b 62.1 389.0 | b-g14 62.1 379.1 | pp-s 33.0 268.7 |
        pp-b 62.2 389.0""",
    "detection/mask-rcnn_crossformer-{}_fpn_1x_coco": """
        s 50.2 301.0 | s-g14 50.2 291.1 | b 71.5 407.9 | b-g14 71.5 398.1 | pp-s 43.0 287.4 |
        pp-b 71.5 408.0""",
    "detection/mask-rcnn_crossformer-{}_fpn_ms-crop-3x_coco": """
        s-g14 50.2 291.1 | b-g14 71.5 398.1""",
    "detection/cascade-mask-rcnn_crossformer-{}_fpn_4conv1fc-giou_ms-crop-3x_coco": """
        s-g14 88.0 769.7""",
    "segmentation/fpn_crossformer-{}_4xb4-80k_ade20k-512x512": """
        s-g14 34.3 209.8 | b-g14 55.6 320.1 | l-g14 95.4 482.7 | s 34.3 220.7 | b 55.6 331.0 |
        l 95.4 497.0 | pp-s-g14 27.1 199.5 | pp-b 55.6 331.1""",
    "segmentation/upernet_crossformer-{}_8xb2-160k_ade20k-512x512": """
        s 62.3 979.5 | b 83.6 1089.7 | l 125.5 1257.8 | s-g14 62.3 968.5 | b-g14 83.6 1078.8 |
        l-g14 125.5 1243.5 | pp-s 53.1 963.5 | pp-b 83.7 1089.8""",
}
CASES = [
    (CONFIGS / f"{config.format(name)}.py", float(params), float(flops))
    for config, rows in PUBLISHED.items()
    for name, params, flops in map(str.split, rows.split("|"))
]


@pytest.mark.parametrize(("config", "params", "flops"), CASES, ids=lambda v: getattr(v, "stem", ""))
def test_the_published_size(config, params, flops):
    complexity = complexity_of(config)
    # The authors' tool prints two decimals, of which the published ones are rounded.
    assert abs(round(complexity.params / 1e6, 2) - params) <= 0.05 + 1e-9
    tolerance = 0.015 if "-pp-" in config.stem else 0.01
    rounding = 0.05 if config.parent.name == "classification" else 0
    assert abs(complexity.flops / 1e9 - flops) <= tolerance * flops + rounding


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_the_model_zoo_has_these_sizes(task):
    models = yaml.safe_load((CONFIGS / task / "metafile.yml").read_text())["Models"]
    configs = {ROOT / model["Config"] for model in models}
    assert configs >= {config for config, *_ in CASES if config.parent.name == task}
    for model in models:
        config, meta = ROOT / model["Config"], model["Metadata"]
        if "FLOPs" in meta:
            complexity = complexity_of(config)
            expected = (complexity.params, complexity.flops)
            assert (meta["Parameters"], meta["FLOPs"]) == expected, model["Name"]
        else:
            built = build_on_meta(load_config(str(config)))
            total = sum(p.numel() for p in built.parameters())
            # mmdet 3.3 has a smaller MLP for the positions of DINO's queries.
            assert meta["Parameters"] - total in (0, 512 * 256 * (meta["Method"] == "DINO"))
            with pytest.raises(ValueError, match="cannot be counted"):
                measure(built, (320, 320))


# Millions of parameters and billions of multiply-adds, published by the authors of Swin: another
# model, counted by other people.
SWIN = {
    "mmpretrain/.mim/configs/swin_transformer/swin-tiny_16xb64_in1k.py": (28, 4.5),
    "mmdet/.mim/configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py": (48, 267),
    "mmseg/.mim/configs/swin/"
    "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py": (60, 945),
}


@pytest.mark.parametrize("config", SWIN, ids=lambda config: config.split("/")[0])
def test_the_published_size_of_swin(config):
    params, flops = SWIN[config]
    library, _, path = config.partition("/")
    complexity = complexity_of(Path(find_spec(library).origin).parent / path)
    assert round(complexity.params / 1e6) == params
    assert complexity.flops / 1e9 == pytest.approx(flops, rel=0.002)


def test_the_attn_backend_does_not_matter():
    config = CONFIGS / "segmentation/fpn_crossformer-pp-s-g14_4xb4-80k_ade20k-512x512.py"
    cfg = load_config(str(config), {"model.backbone.attn_backend": "sdpa"})
    complexity = measure(build_on_meta(cfg), (1024, 1024))
    assert complexity.flops_of == complexity_of(config).flops_of
    assert 0 < complexity.padding < complexity.flops_of["backbone"]


def test_a_model_counted_by_hand():
    with torch.device("meta"):
        model = nn.Module()
        model.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    complexity = measure(model.eval(), (10, 20))
    pixels = 10 * 20
    assert complexity.flops_of == {"backbone": pixels * (3 * 9 * 8 + 2 * 8 + 8), "head": 8 * 5}
    assert complexity.params_of == {"backbone": 3 * 9 * 8 + 8 + 16, "head": 8 * 5 + 5}


# Heads that need more than feature maps, and what is said of them; "": they are counted.
OTHER_HEADS = {
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": "",
    "dino/dino-4scale_r50_8xb2-12e_coco.py": r"DINO .*decoder \(\w+, 9.60 M\), .*encoder \(",
    "detr/detr_r50_8xb2-150e_coco.py": r"DETR .*decoder \(.*encoder \(",
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py": r"panoptic_head \(Mask2FormerHead, ",
    "ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py": r"roi_head.mask_iou_head \(MaskIoUHead, ",
    "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py": r"rpn_head \(EmbeddingRPNHead, 0.03 M\): ",
}


@pytest.mark.parametrize("config", OTHER_HEADS, ids=lambda config: config.split("/")[0])
def test_a_head_is_counted_or_refused_by_name(config):
    model = build_on_meta(load_config(str(MMDET_CONFIGS / config)))
    if OTHER_HEADS[config]:
        with pytest.raises(ValueError, match=OTHER_HEADS[config]) as caught:
            measure(model, (320, 320))
        assert "\n" not in str(caught.value)
    else:
        complexity = measure(model, (320, 320))
        assert all(complexity.flops_of[name] > 0 for name in complexity.params_of)


# --- The tool -----------------------------------------------------------------------------------


@pytest.fixture
def get_flops(capsys):
    """Run the tool in this process and return the lines that it printed."""

    def run(*arguments: object) -> list[str]:
        tool_main(ROOT / "tools/get_flops.py", *arguments)
        return capsys.readouterr().out.strip().splitlines()

    return run


def test_the_tool_prints_totals_and_json_for_the_channels_of_the_backbone(get_flops):
    config = CONFIGS / "classification/crossformer-tiny_8xb128_in1k.py"
    lines = get_flops(config, "--json", "--cfg-options", "model.backbone.in_channels=4")
    plain, kernels = complexity_of(config), (16 * 32, 64 * 16, 256 * 8, 1024 * 8)
    stem = sum(kernels)  # the weights of one more channel
    params, flops = plain.params + stem, plain.flops + stem * 56 * 56
    assert json.loads(lines[-1]) == dict(
        config=str(config),
        shape=[224, 224],
        params=params,
        flops=flops,
        backbone_params=params - (512 * 1000 + 1000),
        backbone_flops=flops - 512 * 1000,
    )
    assert "Input shape: (4, 224, 224)" in lines
    assert f"Flops: {flops / 1e9:.2f} GFLOPs" in lines
    assert f"Params: {params / 1e6:.2f} M" in lines


def test_the_shape_is_height_then_width(get_flops):
    config = CONFIGS / "detection/mask-rcnn_crossformer-s_fpn_1x_coco.py"
    lines = get_flops(config, "--shape", 640, 480, "--json")
    assert "Input shape: (3, 640, 480)" in lines
    parts = {line.split()[0]: float(line.split()[-1]) for line in lines[1:5]}
    assert list(parts) == ["backbone", "neck", "rpn_head", "roi_head"]
    assert sum(parts.values()) == pytest.approx(json.loads(lines[-1])["flops"] / 1e9, abs=0.02)
    assert "Input shape: (3, 640, 640)" in get_flops(config, "--shape", 640)


def test_a_wrong_argument_is_named_in_one_line(get_flops):
    tiny = CONFIGS / "classification/crossformer-tiny_8xb128_in1k.py"
    for message, arguments in {
        "config nowhere.py does not exist": ["nowhere.py"],
        "has no model with a backbone": [CONFIGS / "detection/_base_/default_runtime.py"],
        "--shape 16 64: give height and width": [tiny, "--shape", 16, 64],
        "the FLOPs of DETR cannot be": [MMDET_CONFIGS / "detr/detr_r50_8xb2-150e_coco.py"],
    }.items():
        with pytest.raises(SystemExit, match=rf"^error: [^\n]*{message}[^\n]*$"):
            get_flops(*arguments)
