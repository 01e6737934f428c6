"""The course: nine notebooks, their sources, and what they draw with."""
