"""Pictures of what happens inside a backbone; see ``tools/visualize.py``."""
