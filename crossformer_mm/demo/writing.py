"""Result files, which appear under their names only when they are complete."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from crossformer_mm.demo.prediction import UnusableError
from crossformer_mm.whole_files import replace_when_complete

CODEC = "mp4v"
# Pixels. OpenCV writes past its memory on some videos that are less than 4 wide; 16 is a block of
# the codec.
MIN_VIDEO_SIDE, MAX_VIDEO_SIDE = 16, 8191


def encode_picture(suffix: str, picture: np.ndarray) -> bytes:
    """Encode a picture, (H, W, 3) bytes with blue first, in the format of a suffix.

    Raises:
        UnusableError: If the format cannot hold it: sides of JPEG have at most 65,500 pixels.
    """
    try:
        done, encoded = cv2.imencode(suffix, picture)
    except cv2.error:
        done = False
    if not done:
        height, width = picture.shape[:2]
        raise UnusableError(f"OpenCV cannot write {suffix} pictures of {width} x {height} pixels")
    return encoded.tobytes()


def write_picture(path: Path, encoded: bytes) -> None:
    """Write a picture of :func:`encode_picture`.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(encoded)


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

    Attributes:
        count: Frames so far.
    """

    def __init__(self, movie: Path, json_file: object, fps: float, header: dict) -> None:
        self._movie, self._json, self._fps = movie, json_file, fps
        self._writer: cv2.VideoWriter | None = None
        self.count = 0
        self._json.write(_to_json(header)[:-1] + ', "frames": [')

    def add(self, picture: np.ndarray, record: dict) -> None:
        """Add a frame.

        Raises:
            UnusableError: If there are no videos of this size.
            OSError: If the video cannot be written.
        """
        if self._writer is None:
            self._writer = self._open(*picture.shape[:2])
        self._writer.write(picture)
        self._json.write((",\n" if self.count else "\n") + _to_json(record))
        self.count += 1

    def _open(self, height: int, width: int) -> cv2.VideoWriter:
        if not MIN_VIDEO_SIDE <= min(height, width) <= max(height, width) <= MAX_VIDEO_SIDE:
            raise UnusableError(
                f"a video of its pictures, {width} x {height} pixels, cannot be written: sides "
                f"must have {MIN_VIDEO_SIDE} to {MAX_VIDEO_SIDE}"
            )
        codec = cv2.VideoWriter_fourcc(*CODEC)
        writer = cv2.VideoWriter(str(self._movie), codec, self._fps, (width, height))
        if not writer.isOpened():
            raise OSError(f"OpenCV cannot write {width} x {height} videos ({CODEC}) here")
        return writer

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
        OSError: If they cannot be written. Nothing is left behind after an error.
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
