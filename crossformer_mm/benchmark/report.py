"""What the benchmark prints and writes: a table, CSV, and JSON with all that may matter."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from crossformer_mm.benchmark.results import Result
from crossformer_mm.whole_files import replace_when_complete

COLUMNS = (
    ("contender", "contender", "{}"),
    ("run", "run", "{}"),
    ("median ms", "median_ms", "{:.2f}"),
    ("quartiles", "quartiles", "{}"),
    ("images/s", "images_per_s", "{:.2f}"),
    ("peak MB", "peak_mb", "{:.1f}"),
    ("speed vs plain", "speed_vs_plain", "{:.2f}"),
    ("quartiles", "speed_quartiles", "{}"),
    ("memory vs plain", "memory_vs_plain", "{:.2f}"),
)
LEFT_ALIGNED = 2


def format_table(results: Sequence[Result]) -> str:
    """The results of one case as aligned columns under the case's name, then what failed."""
    rows = [result.as_row() for result in results]
    for row in rows:
        if row["q1_ms"] is not None:
            row["quartiles"] = f"{row['q1_ms']:.2f} - {row['q3_ms']:.2f}"
        if row["speed_q1"] is not None:
            row["speed_quartiles"] = f"{row['speed_q1']:.2f} - {row['speed_q3']:.2f}"
    cells = [[title for title, _, _ in COLUMNS]]
    cells += [[_format(row.get(key), form) for _, key, form in COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [rows[0]["case"]] + ["  ".join(_align(line, widths)).rstrip() for line in cells]
    lines += [f"{r['contender']} ({r['run']}): {r['problem']}" for r in rows if r["problem"]]
    return "\n".join(lines)


def _format(value: object, form: str) -> str:
    return "-" if value is None else form.format(value)


def _align(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if index < LEFT_ALIGNED else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]


def write_results(out: Path, results: Sequence[Result], circumstances: dict) -> None:
    """Write ``results.csv`` and ``results.json``; older ones are replaced when these are complete.

    Args:
        out: Folder, made if it does not exist.
        results: All results so far.
        circumstances: What else belongs into the JSON file: machine, versions, command, date.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = [result.as_row() for result in results]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]) if rows else ["case"])
    writer.writeheader()
    writer.writerows(rows)
    _replace_file(out / "results.csv", table.getvalue())
    entries = [
        {**row, "seconds": result.seconds, "settings": asdict(result.case)}
        for row, result in zip(rows, results, strict=True)
    ]
    _replace_file(
        out / "results.json", json.dumps({**circumstances, "results": entries}, indent=1) + "\n"
    )


def _replace_file(path: Path, text: str) -> None:
    with replace_when_complete(path) as temporary:
        temporary.write_text(text)
