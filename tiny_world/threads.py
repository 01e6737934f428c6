"""How many threads a training uses, and whether it gets on as it should.

Two threads that share each matrix product wait for each other. On a machine with other work, where one of the two is
often interrupted, that costs more than the second thread gives: steps take up to ten times as long as with one thread.
So the number is measured at the start, not assumed.
"""

from __future__ import annotations

import os
import sys
import time

import torch

MEASURED_SECONDS = 1.6  # for both numbers of threads together
TURN_SECONDS = 0.1  # one number, then the other: a load that comes and goes meets both alike
GAIN = 1.15  # all threads are taken if they are so much faster; else they had better be left to others
FIRST_WORD_SECONDS = 15  # of training, after which the pace is judged
FAR_BELOW = 0.4  # of the reference

# Steps a second where this was measured: two cores without other work, all in all.
REFERENCE = {"course, tower": 3.0, "course, decoder": 2.9, "tower": 1.9, "decoder": 0.6}


def products_a_second(threads: int, seconds: float) -> float:
    """Forward and backward passes of a layer of the decoder's shape, with this many threads."""
    torch.set_num_threads(threads)
    x = torch.randn(1500, 192)
    layer = torch.nn.Sequential(torch.nn.Linear(192, 512), torch.nn.SiLU(), torch.nn.Linear(512, 192))
    layer(x).sum().backward()  # the first call wakes the threads up

    done = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        layer(x).sum().backward()
        done += 1
    return done / (time.perf_counter() - began)


def faster(one: float, all_of_them: float) -> bool:
    """Whether all threads are worth it, given what one and all of them do in a second."""
    return all_of_them > GAIN * one


def choose_threads(measure=products_a_second) -> int:
    """Set PyTorch's threads to one or to all that it has, whichever is faster now, and say which on stderr.

    OMP_NUM_THREADS, where it is set, is what the user wants, and stays.
    """
    available = torch.get_num_threads()
    if available == 1 or os.environ.get("OMP_NUM_THREADS"):
        return available

    turns = max(1, round(MEASURED_SECONDS / TURN_SECONDS / 2))
    speeds = {1: 0.0, available: 0.0}
    for _ in range(turns):
        for threads in speeds:
            speeds[threads] += measure(threads, TURN_SECONDS) / turns

    chosen = available if faster(speeds[1], speeds[available]) else 1
    torch.set_num_threads(chosen)
    ratio = speeds[available] / speeds[1]
    print(
        f"Threads: {chosen} of {available} ({available} are {ratio:.1f} times as fast as one here; "
        "OMP_NUM_THREADS sets another number).",
        file=sys.stderr,
        flush=True,
    )
    return chosen


class Pace:
    """Counts the steps of one stage, and says on stderr how fast they are and whether that is far below the usual."""

    def __init__(self, stage: str, clock=time.monotonic):
        self.stage = stage  # a key of REFERENCE
        self.clock = clock
        self.began = clock()
        self.steps = 0
        self.is_judged = False

    def per_second(self) -> float:
        return self.steps / max(self.clock() - self.began, 1e-9)

    def count(self) -> None:
        """A step is done. The first word comes after some seconds: a lesson of minutes should not begin in vain."""
        self.steps += 1
        if self.is_judged or self.clock() - self.began < FIRST_WORD_SECONDS:
            return
        self.is_judged = True
        print(self.sentence(), file=sys.stderr, flush=True)

    def sentence(self) -> str:
        """The pace in words, with what to do if it is far below the reference."""
        speed = self.per_second()
        usual = REFERENCE[self.stage]
        text = f"{self.stage}: {speed:.2g} steps a second"
        if speed >= FAR_BELOW * usual:
            return f"{text}."
        return (
            f"{text}, where two free cores make about {usual:g}: in the same minutes this training will learn less. "
            "End what else is running, or give more --minutes."
        )


def stage_name(is_course: bool, is_tower: bool) -> str:
    """The key of REFERENCE."""
    return ("course, " if is_course else "") + ("tower" if is_tower else "decoder")
