"""Size, cost and speed of models: ``tools/get_flops.py`` and ``tools/benchmark.py``."""
