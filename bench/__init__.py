"""What is measured, and how. `python -m bench` runs it all from the project's root."""
