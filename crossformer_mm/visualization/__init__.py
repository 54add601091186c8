"""Pictures of what happens inside a backbone, and of training runs: see ``tools/visualize.py``."""
