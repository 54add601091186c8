"""--cfg-options: values as they are quoted, keys that something reads, and what a config builds."""

from argparse import ArgumentParser

import pytest
from conftest import NANO_CONFIG, ROOT, apply_options, tool_main
from mmengine.config import Config

from crossformer_mm.engine.cfg_options import add_cfg_options
from crossformer_mm.engine.config import load_config

pytestmark = pytest.mark.families


def parse(*options: str) -> dict:
    parser = ArgumentParser()
    add_cfg_options(parser)
    return parser.parse_args(["--cfg-options", *options]).cfg_options


@pytest.mark.fault("configs and command lines")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("my data/a  b", "my data/a  b"),
        ("[my data/a, b c,3]", ["my data/a", "b c", 3]),
        ("(128, 96)", (128, 96)),
        ("'a, b'", "a, b"),
        ("a,b", ["a", "b"]),
        ("1e-3", 1e-3),
        ("true", True),
        ("None", None),
        ("010", 10),
        ("[(1, 2), [a b]]", [(1, 2), ["a b"]]),
    ],
)
def test_a_value_is_what_is_quoted(text, value):
    assert parse(f"key={text}") == {"key": value}


@pytest.mark.fault("configs and command lines")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("nonsense", "takes KEY=VALUE, not 'nonsense'"),
        ("=3", "takes KEY=VALUE, not '=3'"),
        ("a=" + "[" * 5000 + "]" * 5000, "too many brackets in a value"),
        ("trian_cfg.max_epochs=1", "the config has no 'trian_cfg'; did you mean 'train_cfg'?"),
        ("check_los=False", "the config has no 'check_los'; did you mean 'check_loss'?"),
        ("model.test_cfg.score_th=1", "model.test_cfg has no 'score_th'; did you mean 'score_thr'"),
        ("train_dataloader.dataset.pipeline.99.scale=1", "is a list with places 0 to .*, not 99"),
        ("model.type.x=1", "model.type is 'RetinaNet', which has no entry 'x'"),
        ("model.backbone.a\x1b[31m\nb.c.d=\x1b", None),
    ],
)
def test_a_key_that_leads_to_nothing_is_named(option, said, capsys):
    if said is None:  # a new key is taken; nothing of it reaches the terminal as it is
        load_config(str(NANO_CONFIG), parse(option))
        assert "\x1b" not in "".join(capsys.readouterr())
        return
    with pytest.raises(SystemExit, match=f"^error: --cfg-options .*{said}") as error:
        load_config(str(NANO_CONFIG), parse(option))
    assert str(error.value).isprintable()


@pytest.mark.fault("configs and command lines")
def test_an_option_that_nothing_reads_is_said(capsys):
    cfg = load_config(str(NANO_CONFIG), parse("max_epochs=1", "train_cfg.val_interval=7"))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("warning: --cfg-options max_epochs has no effect")
    assert said[0].endswith("set train_cfg.max_epochs")
    assert cfg.train_cfg.val_interval == 7


@pytest.mark.fault("configs and command lines")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("model.backbone.arhc=tiny", ", model: .*unexpected keyword argument 'arhc'"),
        ("model.bbox_head.type=RetinaHed", ", model: .*RetinaHed"),
        ("model.pretrained=x.pth", ", model: .*unexpected keyword argument 'pretrained'"),
        ("optim_wrapper.optimizer.type=Adamm", ", optim_wrapper: "),
        ("train_cfg.max_epochs=-3", "train_cfg.max_epochs must be .* at least 1, not -3"),
        ("train_cfg.val_interval=0", "train_cfg.val_interval must be .* at least 1, not 0"),
        ("train_dataloader.batch_size=0", "the loader of data set CocoDataset .*batch_size"),
    ],
)
def test_what_a_config_cannot_build_ends_in_one_line(option, said, toy_coco, tmp_path):
    arguments = (NANO_CONFIG, "--work-dir", tmp_path, "--cfg-options", f"data_root={toy_coco}")
    with pytest.raises(SystemExit, match=said) as error:
        tool_main(ROOT / "tools/train.py", *arguments, option)
    assert str(error.value).isprintable()


@pytest.mark.fault("configs and command lines")
@pytest.mark.parametrize(
    ("tool", "options"),
    [
        ("train", ["--work-dir", "/proc/x"]),
        ("train", ["--work-dir", "n" * 300]),
        ("test", ["--work-dir", "w", "--out", "/proc/x/r.pkl"]),
        ("test", ["--work-dir", "w", "--show-dir", "/proc/x"]),
    ],
)
def test_what_cannot_be_written_is_tried_first(tool, options, toy_coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"never read")
    checkpoint = ["w.pth"] if tool == "test" else []
    with pytest.raises(SystemExit, match=f"error: {options[-2]} {options[-1]} cannot be written: "):
        tool_main(
            *(ROOT / f"tools/{tool}.py", NANO_CONFIG, *checkpoint, *options),
            *("--cfg-options", f"data_root={toy_coco}"),
        )


@pytest.mark.fault("images and label maps")
def test_images_of_a_server_need_no_label_maps():
    config = ROOT / "configs/segmentation/fpn_crossformer-nano_toy-ade.py"
    cfg = load_config(str(config), parse("test_evaluator.format_only=True"))
    apply_options(ROOT / "tools/test.py", cfg, checkpoint=str(config))
    dataset: Config = cfg.test_dataloader.dataset
    assert "seg_map_path" not in dataset.data_prefix
    kinds = [step["type"] for step in dataset.pipeline]
    assert "PackSegInputs" in kinds and not {"LoadAnnotations", "CheckSegLabels"} & set(kinds)
