"""Names for results: as short as possible, and different for different inputs."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from crossformer_mm.demo.inputs import is_video

JPEG_SUFFIXES = (".jpg", ".jpeg")


def place_results(files: Sequence[Path], out_dir: Path) -> dict[Path, Path]:
    """Choose where the results of each file go.

    Args:
        files: Absolute paths, all different.
        out_dir: The folder for all results.

    Returns:
        For every file, the path of its results without a suffix.

    Raises:
        FileExistsError: If a result would replace one of the files.
    """
    names = {f: out_dir / name for f, name in zip(files, result_names(files), strict=True)}
    originals = {file.resolve() for file in files}
    for file, name in names.items():
        for result in (picture_path(file, name), json_path(name)):
            if result.resolve() in originals:
                raise FileExistsError(f"a result would replace the input {result}")
    return names


def result_names(files: Sequence[Path]) -> list[str]:
    """Name the results of each file, without a suffix.

    Usually that is the file's own name without its suffix. Files of the same name keep as many of
    their folders as tell them apart: ``a/x`` and ``b/x``. If two files differ in nothing but
    their suffixes, all names keep them.

    Args:
        files: Absolute paths, all different.
    """
    stems = [file.with_suffix("") for file in files]
    if len(set(stems)) < len(stems):
        stems = list(files)
    depth = max((len(stem.parts) for stem in stems), default=0)
    names: list[str] = [""] * len(stems)
    for length in range(1, depth + 1):
        tails = ["/".join(stem.parts[1:][-length:]) for stem in stems]
        counts = Counter(tails)
        names = [
            name or (tail if counts[tail] == 1 else "")
            for name, tail in zip(names, tails, strict=True)
        ]
    return names


def picture_path(file: Path, name: Path) -> Path:
    """Where the picture of a file goes: JPEG for JPEG, MP4 for videos, and PNG for all others."""
    if is_video(file):
        suffix = ".mp4"
    else:
        suffix = ".jpg" if file.suffix.lower() in JPEG_SUFFIXES else ".png"
    return name.with_name(name.name + suffix)


def json_path(name: Path) -> Path:
    """Where the numbers of a file go."""
    return name.with_name(name.name + ".json")
