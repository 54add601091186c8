"""Thousands of images of random sizes do not make memory grow."""

import gc
import random
import resource

import torch

from crossformer_mm import CrossFormer
from crossformer_mm.models.grouping import order_tokens
from crossformer_mm.models.position_bias import MAX_CACHED_TABLES, DynamicPositionBias

FORWARD_PASSES = 2000
WARM_UP = 1000  # oneDNN keeps its kernels of the last 1024 shapes
MEGABYTE = 1 << 20


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_random_sizes_do_not_grow_memory():
    arch = {"embed_dims": 32, "depths": (2, 1, 1, 1), "num_heads": (2, 4, 8, 16)}
    arch |= {"group_size": (5, 5, 3, 2), "interval": (3, 2, 1, 1)}
    model = CrossFormer(arch, lda_mode="fixed_interval").eval()
    draw = random.Random(0)
    sizes = [(draw.randint(32, 112), draw.randint(32, 112)) for _ in range(FORWARD_PASSES)]
    with torch.no_grad():
        for i, size in enumerate(sizes):
            if i == WARM_UP:
                before = resident_bytes()
            model(torch.rand(1, 3, *size))
    assert resident_bytes() - before < 32 * MEGABYTE
    tables = [m._cache._tables for m in model.modules() if isinstance(m, DynamicPositionBias)]
    assert max(map(len, tables)) == MAX_CACHED_TABLES
    assert order_tokens.cache_info().currsize <= order_tokens.cache_info().maxsize == 64
