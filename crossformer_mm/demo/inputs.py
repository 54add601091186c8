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
        inputs: Files, folders and globs. A folder stands for all images in it and below.
        out_dir: Results of earlier runs; folders and globs leave out what lies in it.

    Returns:
        Absolute paths in the order given, those of a folder or glob sorted, and a line on each
        input that stands for nothing.
    """
    files: dict[Path, None] = {}
    problems = []
    for given in inputs:
        found = [Path(os.path.abspath(path)) for path in _expand(given, out_dir.absolute())]
        if not found:
            problems.append(_describe_nothing(given))
        files.update(dict.fromkeys(found))
    return list(files), problems


def _expand(given: str, out_dir: Path) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_file():
        return [path]
    candidates = [path] if path.is_dir() else map(Path, sorted(glob(str(path), recursive=True)))
    files = [file for each in candidates for file in _files_of(each)]
    return [file for file in files if out_dir not in file.absolute().parents]


def _files_of(path: Path) -> list[Path]:
    """The file itself, or the images in the folder and below."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _describe_nothing(given: str) -> str:
    if Path(given).expanduser().is_dir():
        return f"folder {given} has no images"
    if any(sign in given for sign in "*?["):
        return f"glob {given} matches no file"
    return f"{given} does not exist"
