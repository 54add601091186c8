"""Training and testing: configs, processes, the runner, random numbers, resuming, hooks."""
