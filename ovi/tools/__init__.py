"""The command lines: `python -m ovi.tools.batch`, `convert` and `train`."""
