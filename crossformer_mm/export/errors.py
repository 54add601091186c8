"""The error of this package."""


class ExportError(RuntimeError):
    """A model cannot be exported as asked, or its file computes something else."""
