"""What the writers of all toy data sets share: checks, random numbers, JPEG and progress."""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from crossformer_mm.datasets.toy.scene import MIN_SIDE

SPLITS = ("train", "val")
MAX_IMAGES = 500_000  # per split
MAX_SIDE = 4096
PROGRESS_EVERY = 100
_JPEG_QUALITY = 92


def check_arguments(train: int, val: int, size: tuple[int, int], seed: int) -> None:
    """Raise ValueError, naming the argument, if one that every writer takes is out of range."""
    _check("train", train, 1, MAX_IMAGES, "images")
    _check("val", val, 1, MAX_IMAGES, "images")
    for side, value in zip(("width", "height"), size, strict=True):
        _check(f"size ({side})", value, MIN_SIDE, MAX_SIDE, "pixels")
    _check("seed", seed, 0, 2**63, "")


def _check(name, value, least, most, unit):
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, but must be from {least} to {most} {unit}".rstrip())


def random_of_image(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers for one image: they depend on no other image."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def maybe_turned(rng: np.random.Generator, size: tuple[int, int]) -> tuple[int, int]:
    """``size`` (width, height), about one time in five turned on its side."""
    return size if rng.uniform() < 0.8 else size[::-1]


def encode_jpeg(picture: np.ndarray) -> bytes:
    """The file content for a picture, uint8 BGR (height, width, 3)."""
    is_encoded, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert is_encoded
    return jpeg.tobytes()


def count_images(split: str, count: int, report: Callable[[str], None]) -> Iterator[int]:
    """Give 0 to ``count`` - 1, and ``report`` a line of progress now and then."""
    for index in range(count):
        yield index
        if (index + 1) % PROGRESS_EVERY == 0 or index + 1 == count:
            report(f"{split}: {index + 1} of {count} images")
