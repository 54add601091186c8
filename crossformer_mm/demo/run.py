"""Predict on all files, and write what was found beside each other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from mmengine.structures import BaseDataElement
from rich.progress import Progress

from crossformer_mm.demo.batches import batches_of_one_size
from crossformer_mm.demo.drawing import Painter
from crossformer_mm.demo.inputs import is_video
from crossformer_mm.demo.naming import json_path, picture_path
from crossformer_mm.demo.prediction import Predictor, Sample, UnusableError
from crossformer_mm.demo.records import DESCRIBE, TASKS, check_finite
from crossformer_mm.demo.videos import Video
from crossformer_mm.demo.writing import (
    encode_picture,
    open_video_results,
    write_json,
    write_picture,
)


@dataclass
class Demo:
    """A model at work.

    Attributes:
        predictor: The model.
        painter: What draws its predictions.
        classes: Names of its classes.
        batch_size: Most images at a time.
        progress: Where bars and failures are shown.
        failures: Files that could not be used, with the reason.
    """

    predictor: Predictor
    painter: Painter
    classes: list[str]
    batch_size: int
    progress: Progress
    failures: dict[Path, str] = field(default_factory=dict)

    def run(self, names: Mapping[Path, Path]) -> None:
        """Predict on files; what cannot be read is reported and left out.

        Args:
            names: For every file, the path of its results without a suffix.

        Raises:
            OSError: If a result cannot be written.
        """
        images = {file: name for file, name in names.items() if not is_video(file)}
        if images:
            self._run_images(images)
        for file, name in names.items():
            if is_video(file):
                self._run_video(file, name)

    def _run_images(self, names: Mapping[Path, Path]) -> None:
        bar = self.progress.add_task("images", total=len(names))
        samples = self._read_images(names, bar)
        for batch in batches_of_one_size(samples, _input_size, self.batch_size):
            for sample, prediction in zip(batch, self.predictor.predict(batch), strict=True):
                try:
                    self._write_image(sample, prediction, names[sample.path])
                except UnusableError as error:
                    self._fail(sample.path, error)
                self.progress.advance(bar)

    def _write_image(self, sample: Sample, prediction: BaseDataElement, name: Path) -> None:
        record = {**self._header(sample), **self._describe(prediction)}
        picture_file = picture_path(sample.path, name)
        picture = self.painter.draw(sample.image, prediction)
        encoded = encode_picture(picture_file.suffix, picture)
        write_json(json_path(name), record)
        write_picture(picture_file, encoded)

    def _read_images(self, names: Mapping[Path, Path], bar: int) -> Iterator[Sample]:
        for file in names:
            try:
                yield self.predictor.read_image(file)
            except UnusableError as error:
                self._fail(file, error)
                self.progress.advance(bar)

    def _run_video(self, file: Path, name: Path) -> None:
        try:
            video = Video(file)
            samples = (self.predictor.prepare_image(file, frame) for frame in video.frames())
            read = self._run_frames(video, samples, file, name)
        except UnusableError as error:
            self._fail(file, error)
        else:
            if read < (video.frame_count or 0):
                self._say(
                    f"warning: {file} has {read} frames, but says that it has "
                    f"{video.frame_count}: is it cut off?"
                )

    def _run_frames(self, video: Video, samples: Iterator[Sample], file: Path, name: Path) -> int:
        """Predict on a video's frames, and return how many there were."""
        bar = self.progress.add_task(file.name, total=video.frame_count)
        first = next(samples)
        samples = chain([first], samples)
        header = {**self._header(first), "fps": video.fps}
        with open_video_results(
            picture_path(file, name), json_path(name), video.fps, header
        ) as results:
            for batch in batches_of_one_size(samples, _input_size, self.batch_size):
                for sample, prediction in zip(batch, self.predictor.predict(batch), strict=True):
                    picture = self.painter.draw(sample.image, prediction)
                    results.add(picture, self._describe(prediction))
                    self.progress.advance(bar)
        self.progress.update(bar, total=results.count)
        return results.count

    def _header(self, sample: Sample) -> dict:
        height, width = sample.image.shape[:2]
        task = TASKS[self.predictor.scope]
        return dict(input=str(sample.path), task=task, width=width, height=height)

    def _describe(self, prediction: BaseDataElement) -> dict:
        record = DESCRIBE[self.predictor.scope](prediction, self.classes)
        check_finite(record)
        return record

    def _fail(self, file: Path, error: UnusableError) -> None:
        self.failures[file] = str(error)
        self._say(f"cannot use {file}: {error}")

    def _say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _input_size(sample: Sample) -> tuple[int, int]:
    return sample.input_size
