"""Bring the model zoo up to date.

What get_flops.py counts goes into the metafiles, and the tables of the README.md files are written
from the metafiles.

python tools/update_model_zoo.py          # write
python tools/update_model_zoo.py --check  # only say what would change, with exit status 1
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from crossformer_mm.analysis.flops import DEFAULT_SHAPES, measure
from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_on_meta
from crossformer_mm.utils.cli import OneLineParser, fail, run

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- table: tools/update_model_zoo.py -->", "<!-- end of table -->"
PUBLISHED = " (published by the authors)"
AUTHORS = "https://github.com/cheerss/CrossFormer"


def update_metafile(text: str) -> str:
    """Replace the parameters and FLOPs of every model in a metafile by those of its config.

    A model without FLOPs there, as its head cannot be counted, gets its parameters only.
    """
    for model in yaml.safe_load(text)["Models"]:
        cfg = load_config(str(ROOT / model["Config"]))
        built = build_on_meta(cfg)
        sizes = {"Parameters": sum(parameter.numel() for parameter in built.parameters())}
        if "FLOPs" in model["Metadata"]:
            sizes["FLOPs"] = measure(built, DEFAULT_SHAPES[cfg.default_scope]).flops
        start = text.index(f"  - Name: {model['Name']}\n")
        head, entry = text[:start], text[start:]
        for key, value in sizes.items():
            entry = re.sub(rf"{key}: \d+", f"{key}: {value}", entry, count=1)
        text = head + entry
    return text


def update_readme(text: str, metafile: str) -> str:
    """Replace the table in a README by one of the models in a metafile."""
    before, rest = text.split(BEGIN)
    models = yaml.safe_load(metafile)["Models"]
    published = [read_metrics(model) for model in models]
    metrics = dict.fromkeys(metric for found in published for metric in found)
    rows = [make_row(*pair, metrics) for pair in zip(models, published, strict=True)]
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}"


def make_row(model: dict, published: dict, metrics: Iterable[str]) -> dict[str, str]:
    """Cells of a model's row, by column."""
    meta = model["Metadata"]
    return {
        **({"method": meta["Method"]} if "Method" in meta else {}),
        "backbone": meta["Backbone"],
        "groups": meta["Groups"],
        "recipe": describe_recipe(meta),
        "params": f"{meta['Parameters'] / 1e6:.1f}M",
        "FLOPs": f"{meta['FLOPs'] / 1e9:.1f}G" if "FLOPs" in meta else "–",
        **{f"{metric}, published": str(published.get(metric, "–")) for metric in metrics},
        "config": f"[{model['Name']}]({Path(model['Config']).name})",
        "weights": f"[authors]({AUTHORS})" if published else "–",
    }


def read_metrics(model: dict) -> dict[str, float]:
    """The authors' metrics of a model."""
    metrics = {k: v for result in model["Results"] for k, v in result["Metrics"].items()}
    for name in metrics:
        if not name.endswith(PUBLISHED):
            fail(f"{model['Name']}: metric {name!r} does not end with {PUBLISHED!r}")
    return {name.removesuffix(PUBLISHED): value for name, value in metrics.items()}


def describe_recipe(meta: dict) -> str:
    """Length of the training and images per step."""
    iterations = meta.get("Iterations")
    length = f"{iterations // 1000}k iterations" if iterations else f"{meta['Epochs']} epochs"
    if "Lr schd" in meta:
        length = f"{meta['Lr schd']} ({length})"
    return f"{length}, batch {meta['Batch Size']}"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files that changed, or name them."""
    check, outdated = parse_args(argv).check, False
    for task in ("classification", "detection", "segmentation"):
        metafile, readme = (ROOT / "configs" / task / n for n in ("metafile.yml", "README.md"))
        models = update_metafile(metafile.read_text())
        for path, text in ((metafile, models), (readme, update_readme(readme.read_text(), models))):
            if path.read_text() != text:
                outdated = True
                print(f"{'out of date' if check else 'updated'}: {path.relative_to(ROOT)}")
                if not check:
                    path.write_text(text)
    sys.exit(1 if check and outdated else 0)


if __name__ == "__main__":
    run(main)
