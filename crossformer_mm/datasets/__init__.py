"""Data: transforms, where it is expected, and toy data sets that are drawn."""
