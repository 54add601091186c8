"""Bring the model zoo up to date.

What get_flops.py counts goes into the metafiles, and the tables of the README.md files are written
from the metafiles.

python tools/update_model_zoo.py          # write
python tools/update_model_zoo.py --check  # only say what would change, with exit status 1
"""

import argparse
import re
import sys
from pathlib import Path

import yaml

from crossformer_mm.analysis.flops import DEFAULT_SHAPES, measure
from crossformer_mm.engine.launch import load_config
from crossformer_mm.models.build import build_on_meta

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("classification", "detection", "segmentation")
BEGIN, END = "<!-- table: tools/update_model_zoo.py -->", "<!-- end of table -->"
PUBLISHED = " (published by the authors)"
AUTHORS = "https://github.com/cheerss/CrossFormer"


def update_metafile(text: str) -> str:
    """Replace the parameters and FLOPs of every model in a metafile by those of its config."""
    for model in yaml.safe_load(text)["Models"]:
        cfg = load_config(str(ROOT / model["Config"]))
        complexity = measure(build_on_meta(cfg), DEFAULT_SHAPES[cfg.default_scope])
        start = text.index(f"  - Name: {model['Name']}\n")
        head, entry = text[:start], text[start:]
        for key, value in (("Parameters", complexity.params), ("FLOPs", complexity.flops)):
            entry = re.sub(rf"{key}: \d+", f"{key}: {value}", entry, count=1)
        text = head + entry
    return text


def update_readme(text: str, metafile: str) -> str:
    """Replace the table in a README by one of the models in a metafile."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{make_table(yaml.safe_load(metafile)['Models'])}{END}{after}"


def make_table(models: list[dict]) -> str:
    """Write a Markdown table with one row per model."""
    metrics = list(dict.fromkeys(metric for model in models for metric in read_metrics(model)))
    rows = [make_row(model, metrics) for model in models]
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *(row.values() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def make_row(model: dict, metrics: list[str]) -> dict[str, str]:
    """Cells of a model's row, by column."""
    meta, published = model["Metadata"], read_metrics(model)
    row = {"method": meta["Method"]} if "Method" in meta else {}
    row |= {
        "backbone": meta["Backbone"],
        "groups": meta["Groups"],
        "recipe": describe_recipe(meta),
        "params": f"{meta['Parameters'] / 1e6:.1f}M",
        "FLOPs": f"{meta['FLOPs'] / 1e9:.1f}G",
    }
    row |= {f"{metric}, published": str(published.get(metric, "–")) for metric in metrics}
    row["config"] = f"[{model['Name']}]({Path(model['Config']).name})"
    row["weights"] = f"[authors]({AUTHORS})" if published else "–"
    return row


def read_metrics(model: dict) -> dict[str, float]:
    """The authors' metrics of a model."""
    metrics = {}
    for result in model["Results"]:
        for name, value in result["Metrics"].items():
            if not name.endswith(PUBLISHED):
                sys.exit(f"error: {model['Name']}: metric {name!r} does not end with {PUBLISHED!r}")
            metrics[name.removesuffix(PUBLISHED)] = value
    return metrics


def describe_recipe(meta: dict) -> str:
    """Length of the training and images per step."""
    if "Iterations" in meta:
        length = f"{meta['Iterations'] // 1000}k iterations"
    else:
        length = f"{meta['Epochs']} epochs"
    if "Lr schd" in meta:
        length = f"{meta['Lr schd']} ({length})"
    return f"{length}, batch {meta['Batch Size']}"


def find_changes() -> dict[Path, str]:
    """What the metafiles and READMEs should hold, for those that do not."""
    changes = {}
    for task in TASKS:
        metafile, readme = (ROOT / "configs" / task / n for n in ("metafile.yml", "README.md"))
        new_metafile = update_metafile(metafile.read_text())
        new_readme = update_readme(readme.read_text(), new_metafile)
        for path, text in ((metafile, new_metafile), (readme, new_readme)):
            if path.read_text() != text:
                changes[path] = text
    return changes


def main() -> None:
    """Write the files that changed, or name them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    changes = find_changes()
    for path, text in changes.items():
        print(f"{'out of date' if args.check else 'updated'}: {path.relative_to(ROOT)}")
        if not args.check:
            path.write_text(text)
    sys.exit(1 if args.check and changes else 0)


if __name__ == "__main__":
    main()
