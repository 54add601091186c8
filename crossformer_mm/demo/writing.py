"""Result files, which appear under their names only when they are complete."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from crossformer_mm.whole_files import replace_when_complete

CODEC = "mp4v"


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture, (H, W, 3) bytes with blue first, in the format of the suffix.

    Raises:
        OSError: If it cannot be written.
    """
    _, encoded = cv2.imencode(path.suffix, picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as temporary:
        temporary.write_text(_to_json(content) + "\n")


def _to_json(content: dict) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


class VideoResults:
    """Takes a video's pictures and records one by one.

    Args:
        movie: The MP4 file to write.
        json_file: The open JSON file to write.
        fps: Frames per second.
        header: What the JSON object begins with, before ``'frames'``.
    """

    def __init__(self, movie: Path, json_file: object, fps: float, header: dict) -> None:
        self._movie, self._json, self._fps = movie, json_file, fps
        self._writer: cv2.VideoWriter | None = None
        self._json.write(_to_json(header)[:-1] + ', "frames": [')

    def add(self, picture: np.ndarray, record: dict) -> None:
        """Add a frame.

        Raises:
            OSError: If the video cannot be written.
        """
        is_first = self._writer is None
        if is_first:
            height, width = picture.shape[:2]
            codec = cv2.VideoWriter_fourcc(*CODEC)
            self._writer = cv2.VideoWriter(str(self._movie), codec, self._fps, (width, height))
            if not self._writer.isOpened():
                raise OSError(f"OpenCV cannot write {width} x {height} videos ({CODEC}) here")
        self._writer.write(picture)
        self._json.write(("\n" if is_first else ",\n") + _to_json(record))

    def close(self) -> None:
        """Finish the video; both files are incomplete before."""
        if self._writer is not None:
            self._writer.release()
        self._json.write("\n]}\n")


@contextmanager
def open_video_results(
    movie: Path, json_path: Path, fps: float, header: dict
) -> Iterator[VideoResults]:
    """Write a video and its records; both get their names when the block ends without an error.

    Raises:
        OSError: If they cannot be written.
    """
    movie.parent.mkdir(parents=True, exist_ok=True)
    # OpenCV finds the format by the suffix, so the temporary file must have the same.
    with (
        TemporaryDirectory(prefix=".demo-", dir=movie.parent) as folder,
        replace_when_complete(json_path) as temporary,
    ):
        unfinished = Path(folder) / movie.name
        with temporary.open("w") as json_file:
            results = VideoResults(unfinished, json_file, fps, header)
            try:
                yield results
            finally:
                results.close()
        os.replace(unfinished, movie)
