"""Images per second of a config's model over the images of its test data loader.

It answers the ``--throughput`` option of the authors' training program: some batches to warm up,
then one batch again and again; loading and normalising the images is not timed.
"""

from dataclasses import replace
from functools import partial
from itertools import islice

from mmengine.config import Config
from mmengine.registry import init_default_scope

from crossformer_mm.benchmark.case import Case
from crossformer_mm.benchmark.results import Result
from crossformer_mm.benchmark.timing import synchronizer, time_in_turn
from crossformer_mm.benchmark.workload import Workload
from crossformer_mm.runner import DataCheckingRunner


def measure_throughput(cfg: Config, case: Case) -> list[Result]:
    """Time the contenders on the first batch of the test data loader.

    Args:
        cfg: The config, its data checked.
        case: ``warmup`` batches at most are run first, ``repeat`` passes are timed.
    """
    init_default_scope(cfg.get("default_scope"))
    loader = DataCheckingRunner.build_dataloader(cfg.test_dataloader)
    workloads = {contender: Workload(case, contender) for contender in case.contenders}
    first_inputs = None
    for batch in islice(loader, max(1, case.warmup)):
        for workload in workloads.values():
            data = workload.model.data_preprocessor(batch, False)
            inputs = (data["inputs"], data.get("data_samples"))
            first_inputs = first_inputs or inputs
            workload(*inputs)
    steps = {c: partial(workload, *first_inputs) for c, workload in workloads.items()}
    timings = time_in_turn(steps, case.repeat, 0, synchronizer(case.device))
    count, _, height, width = first_inputs[0].shape
    sized = replace(case, batch=count, shape=(height, width))
    return [
        Result(
            sized,
            contender,
            timings.seconds.get(contender, []),
            problem=timings.failures.get(contender),
            title=f"throughput {sized.name}",
        )
        for contender in case.contenders
    ]


def format_throughput(result: Result) -> str:
    """The authors' line, images of all passes by their time, and the contender."""
    who = f"({result.contender.model}, {result.contender.run})"
    if result.problem:
        return f"throughput {who} failed: {result.problem}"
    rate = result.case.batch * len(result.seconds) / sum(result.seconds)
    return f"batch_size {result.case.batch} throughput {rate:.2f} {who}"
