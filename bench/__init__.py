"""Measurements of speed, memory and quality. `python -m bench`, in the project's root, measures speed and memory."""
