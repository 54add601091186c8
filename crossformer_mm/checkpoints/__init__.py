"""Checkpoint files: reading them as data, handing them to mmengine, writing, converting."""
