"""Training by epochs that goes on in the middle of one, without loading what it has seen."""

from collections.abc import Iterator, Sequence
from itertools import islice

from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import Sampler


class SkippingBatchSampler(Sampler):
    """Another batch sampler, without the first batches the next time that it is iterated over."""

    def __init__(self, batch_sampler: Sampler) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler  # mmengine tells it the epoch
        self.skipped = 0

    def __iter__(self) -> Iterator[list[int]]:
        # When the first batch is asked for, since data loaders may ask for the iterator twice.
        skipped, self.skipped = self.skipped, 0
        yield from islice(self.batch_sampler, skipped, None)

    def __len__(self) -> int:
        return len(self.batch_sampler)


class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop, whose first epoch begins after the iterations that were made already.

    ``iters_done`` counts those of the current epoch.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.iters_done = 0
        self.batches = SkippingBatchSampler(self.dataloader.batch_sampler)
        vars(self.dataloader)["batch_sampler"] = self.batches  # setattr is refused

    def run_epoch(self) -> None:
        """Iterate over an epoch, or what is left of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self.batches.skipped = self.iters_done
        for idx, data_batch in enumerate(self.dataloader, start=self.iters_done):
            self.run_iter(idx, data_batch)
        self.iters_done = 0
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Make one iteration; it counts for the checkpoint that a hook may save after it."""
        self.iters_done = idx + 1
        super().run_iter(idx, data_batch)
