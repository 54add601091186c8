"""Read videos frame by frame."""

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from crossformer_mm.demo.prediction import UnusableError

DEFAULT_FPS = 25.0


class Video:
    """A video file, to be read once.

    Args:
        path: The file.

    Attributes:
        frame_count: How many frames the file says it has; that may be wrong. None if it does not
            say.

    Raises:
        UnusableError: If OpenCV cannot read it.
    """

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        _, self._first = self._capture.read() if self._capture.isOpened() else (False, None)
        if self._first is None:
            raise UnusableError("it is not a video that OpenCV can read")
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frame_count = int(count) if math.isfinite(count) and count > 0 else None

    @property
    def fps(self) -> float:
        """Frames per second, 25 if the file does not say."""
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        return fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS

    def frames(self) -> Iterator[np.ndarray]:
        """The frames, (H, W, 3) bytes, blue first."""
        frame = self._first
        while frame is not None:
            yield frame
            _, frame = self._capture.read()
        self._capture.release()
