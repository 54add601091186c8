"""The error that the tools for pictures print as one line."""


class VisualizationError(ValueError):
    """A picture cannot be made from what the user gave; the message says why and what would do."""
