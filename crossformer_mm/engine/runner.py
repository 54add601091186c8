"""The runner of the tools: mmengine's, with errors that name the file and repeatable data."""

from collections.abc import Mapping

from mmengine.dataset import Compose
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from crossformer_mm.engine.seeding import seed_before_each_sample, with_seeding_sampler


class DataError(RuntimeError):
    """Something is wrong with a data set; the message names the file or folder."""


class NamingPipeline(Compose):
    """A data set's transforms; when one fails, the error says which, and on which file.

    Args:
        pipeline: The data set's own pipeline.
    """

    def __init__(self, pipeline: Compose) -> None:
        self.transforms = pipeline.transforms

    def __call__(self, data: dict) -> dict | None:
        """Apply the transforms, as :class:`mmengine.dataset.Compose` does.

        Raises:
            DataError: If a transform raises.
        """
        sample = data
        for transform in self.transforms:
            try:
                data = transform(data)
            except Exception as error:
                name = type(transform).__name__
                what = str(error) or type(error).__name__
                raise DataError(f"{name} failed on {_describe_files(sample)}: {what}") from error
            if data is None:
                return None
        return data


def _describe_files(data: Mapping) -> str:
    files = [f"image {data.get('img_path')}"]
    if data.get("seg_map_path"):
        files.append(f"label map {data['seg_map_path']}")
    return ", ".join(files)


class DataCheckingRunner(Runner):
    """mmengine's runner, with errors that name what is wrong with the data."""

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, *args: object, **kwargs: object
    ) -> DataLoader:
        """Build a data loader; arguments as mmengine's. Each sample has its own random numbers.

        Raises:
            DataError: If the data set cannot be read or is empty.
        """
        try:
            loader = Runner.build_dataloader(with_seeding_sampler(dataloader), *args, **kwargs)
        except Exception as error:
            raise DataError(f"{_describe_place(dataloader)} cannot be read: {error}") from error
        seed_before_each_sample(loader.dataset)
        for dataset in _walk(loader.dataset):
            pipeline = getattr(dataset, "pipeline", None)
            if isinstance(pipeline, Compose) and not isinstance(pipeline, NamingPipeline):
                dataset.pipeline = NamingPipeline(pipeline)
        return loader


def _describe_place(dataloader: Mapping) -> str:
    dataset = dataloader["dataset"]
    places = {k: dataset[k] for k in ("data_root", "ann_file", "data_prefix") if dataset.get(k)}
    return f"data set {dataset.get('type')} ({places})"


def _walk(dataset: Dataset) -> list[Dataset]:
    """The data set and those that wrappers such as RepeatDataset hold."""
    inner = [getattr(dataset, "dataset", None), *getattr(dataset, "datasets", [])]
    return [dataset, *(each for part in inner if part is not None for each in _walk(part))]
