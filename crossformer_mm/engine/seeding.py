"""Random numbers that an interrupted training repeats: each has its place, not a history.

mmengine seeds once, at the start, and its checkpoints do not hold the state of the generators. So
here these are seeded again for every sample and every iteration, by the place of each in the
training. How many processes load the data, or train, then makes no difference to a sample.
"""

import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from mmengine.dist import get_dist_info, get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, Sampler


class SeededIndex(int):
    """The index of a sample, with the seed for its random transforms."""

    seed: int


class SeedingSampler(Sampler):
    """Draws as another sampler does, and gives each index a seed by its place among all drawn.

    Args:
        sampler: Config of the other sampler, which gets ``dataset`` and ``seed`` from mmengine.
    """

    def __init__(self, sampler: Mapping, dataset: Dataset, seed: int | None) -> None:
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.base_seed = getattr(self.sampler, "seed", seed)
        self.first = 0

    def __iter__(self) -> Iterator[int]:
        rank, world_size = get_dist_info()
        epoch = getattr(self.sampler, "epoch", 0)
        for number, index in enumerate(self.sampler, start=self.first):
            if isinstance(index, int):
                index = SeededIndex(index)
                index.seed = _mix(self.base_seed, epoch, number * world_size + rank)
            yield index

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> object:
        """Everything else is the other sampler's; ``skip`` is there only if it has one."""
        if name == "sampler":  # while this object is made, or unpickled
            raise AttributeError(name)
        value = getattr(self.sampler, name)
        return self._skip if name == "skip" else value

    def _skip(self, samples: int) -> None:
        self.sampler.skip(samples)
        self.first = samples


def with_seeding_sampler(dataloader: DataLoader | Mapping) -> DataLoader | Mapping:
    """Return the config of a data loader whose indices have seeds, where that is possible."""
    if isinstance(dataloader, Mapping) and isinstance(dataloader.get("sampler"), Mapping):
        return dict(dataloader, sampler=dict(type=SeedingSampler, sampler=dataloader["sampler"]))
    return dataloader


def take_samples(dataset: Dataset, indices: Sequence[int]) -> list:
    """Take a batch for a data loader; the generators are seeded before each sample."""
    samples = []
    for index in indices:
        if isinstance(index, SeededIndex):
            _seed_on_cpu(index.seed)
        samples.append(dataset[index])
    return samples


class SeedEachIterationHook(Hook):
    """Seeds each process before an iteration: for drop path, dropout, sampled boxes."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Seed by the iteration; the batch is loaded already."""
        seed = _mix(runner.seed, "iteration", runner.iter, get_rank())
        _seed_on_cpu(seed)
        torch.manual_seed(seed)


def _seed_on_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _mix(*place: object) -> int:
    """A seed of 32 bits that is the same everywhere and unlike that of any other place."""
    return random.Random("/".join(map(str, place))).getrandbits(32)
