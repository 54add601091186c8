"""Errors, files, the command line and the environment: what every other folder may use."""
