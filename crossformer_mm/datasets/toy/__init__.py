"""Toy data sets, drawn by program, that stand in for COCO and its kin in quick checks."""
