"""From what the command line names to the files to predict on."""

import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its suffix; every other file is tried as an image."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_files(inputs: Sequence[str], out_dir: Path) -> tuple[list[Path], list[str]]:
    """Find the files that inputs stand for, each once.

    Args:
        inputs: Files, folders and globs. A folder stands for all images in it and below, also in
            folders that it links to. Links to files that are gone count as images.
        out_dir: Results of earlier runs; folders and globs leave out what lies in it.

    Returns:
        Absolute paths in the order given, those of a folder or glob sorted, and a line on each
        input that stands for nothing.
    """
    files: dict[Path, None] = {}
    problems = []
    for given in inputs:
        candidates = [Path(os.path.abspath(path)) for path in _expand(given)]
        kept = candidates
        if not _path(given).is_file():
            results = out_dir.resolve()
            kept = [f for f in candidates if not f.parent.resolve().is_relative_to(results)]
        if not kept:
            where = f" but those in --out-dir {out_dir}, which are left out" if candidates else ""
            problems.append(_describe_nothing(given) + where)
        files.update(dict.fromkeys(kept))
    return list(files), problems


def _path(given: str) -> Path:
    # Not Path.expanduser, which raises an error for users that do not exist.
    return Path(os.path.expanduser(given))


def _expand(given: str) -> list[Path]:
    path = _path(given)
    if not given:  # as Path, that would be the current folder
        return []
    if path.is_file():
        return [path]
    candidates = [path] if path.is_dir() else map(Path, sorted(glob(str(path), recursive=True)))
    return [file for each in candidates for file in _files_of(each)]


def _files_of(path: Path) -> list[Path]:
    """The file itself, or the images in the folder and below."""
    if not path.is_dir():
        return [path]
    files = [file for folder in _folders_of(path) for file in folder.iterdir()]
    return sorted(f for f in files if f.suffix.lower() in IMAGE_SUFFIXES and not f.is_dir())


def _folders_of(top: Path) -> list[Path]:
    """The folder, those below it, and those they link to; each once, and none above it."""
    found: dict[Path, Path] = {}  # without links -> as it was reached
    waiting = [top]
    while waiting:
        folder = waiting.pop(0)
        if folder.resolve() in found:
            continue
        for root, names, _ in os.walk(folder):
            found[Path(root).resolve()] = Path(root)
            folders = {name: Path(root, name).resolve() for name in names}
            names[:] = sorted(name for name, real in folders.items() if real not in found)
            linked = [Path(root, name) for name in names if Path(root, name).is_symlink()]
            waiting += [link for link in linked if not _is_above(link, top)]
    return list(found.values())


def _is_above(folder: Path, other: Path) -> bool:
    return other.resolve().is_relative_to(folder.resolve())


def _describe_nothing(given: str) -> str:
    if not given:
        return "an empty name stands for nothing"
    if _path(given).is_dir():
        return f"folder {given} has no images"
    if any(sign in given for sign in "*?["):
        return f"glob {given} matches no file"
    return f"{given} does not exist"
