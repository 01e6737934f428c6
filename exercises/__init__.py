"""Exercises of the nine notebooks. `python -m exercises`, or `from exercises.checker import check, hint`."""
