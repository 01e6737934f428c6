"""What the studies share: a table that grows row by row, and a drawing."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path

Row = dict[str, str | float]


class Results:
    """The table: rows are added as they come, and known ones are not measured again."""

    def __init__(self, file: Path, keys: tuple[str, ...]):
        self.file = file
        self.keys = keys  # columns that name a setting; rows that differ in others are repetitions of it
        self.rows: list[Row] = []
        if file.exists():
            with file.open(newline="") as lines:
                self.rows = list(csv.DictReader(lines))

    def has(self, **keys) -> bool:
        """Whether there is a row with these values."""
        return any(all(row[key] == str(keys[key]) for key in keys) for row in self.rows)

    def add(self, **row) -> None:
        """Append a row, to the file too, and print it."""
        self.rows.append({key: str(value) for key, value in row.items()})
        with self.file.open("a", newline="") as lines:
            writer = csv.DictWriter(lines, row)
            if lines.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def series(self, x: str, y: str, **where) -> tuple[list[float], list[float], list[float]]:
        """Means of x, means of y and standard deviations of y: one of each for every setting whose rows fit `where`."""
        groups = defaultdict(list)
        for row in self.rows:
            if all(row[key] == str(value) for key, value in where.items()):
                setting = tuple(row[key] for key in self.keys)
                groups[setting].append((float(row[x]), float(row[y])))

        points = []
        for pairs in groups.values():
            xs, ys = zip(*pairs)
            deviation = statistics.stdev(ys) if len(ys) > 1 else 0.0
            points.append((statistics.mean(xs), statistics.mean(ys), deviation))
        points.sort()
        return [x for x, _, _ in points], [y for _, y, _ in points], [deviation for _, _, deviation in points]


def figure(columns: int, rows: int = 1):
    """A drawing, and its axes, row by row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.7 * rows), constrained_layout=True)
    for axis in axes.flatten():
        axis.grid(alpha=0.3)
    return drawing, axes.flatten()
