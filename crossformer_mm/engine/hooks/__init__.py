"""Hooks of a training: what a checkpoint matched, whether losses are finite, whole files."""
