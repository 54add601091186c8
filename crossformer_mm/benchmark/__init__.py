"""Speed and memory of the models: what ``tools/benchmark.py`` measures, and how."""
