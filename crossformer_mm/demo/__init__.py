"""Try a model on images and videos: what ``tools/demo.py`` does."""
