"""All cases of all kinds, under their full names."""

from __future__ import annotations

from functools import cache
from itertools import chain

from tests.hostile.arrays import arrays
from tests.hostile.bombs import bombs
from tests.hostile.cases import Case
from tests.hostile.command_lines import command_lines
from tests.hostile.contents import contents
from tests.hostile.damaged import damaged_clips, damaged_pictures
from tests.hostile.data_uris import data_uris
from tests.hostile.first_minutes import first_minutes
from tests.hostile.indexes import indexes
from tests.hostile.injections import injections
from tests.hostile.keys import unexpected
from tests.hostile.lessons import lessons
from tests.hostile.messages import messages
from tests.hostile.model_calls import model_calls
from tests.hostile.odd_clips import odd_clips
from tests.hostile.options import options
from tests.hostile.other_checkpoints import other_checkpoints
from tests.hostile.paths import paths
from tests.hostile.picture_kinds import picture_kinds
from tests.hostile.settings import settings
from tests.hostile.urls import urls
from tests.hostile.weights import weights

PARTS = (  # in the order of the table
    messages,
    options,
    unexpected,
    model_calls,
    arrays,
    settings,
    weights,
    indexes,
    other_checkpoints,
    injections,
    command_lines,
    lessons,
    first_minutes,
    paths,
    data_uris,
    contents,
    picture_kinds,
    urls,
    damaged_pictures,
    damaged_clips,
    odd_clips,
    bombs,
)


@cache
def corpus() -> dict[str, Case]:
    """All cases by their full names, always in the same order."""
    return by_name(chain.from_iterable(part() for part in PARTS))


def by_name(cases) -> dict[str, Case]:
    named = {}
    for case in cases:
        name = f"{case.kind} · {case.name}"
        assert name not in named, f"two cases have the name {name!r}"
        named[name] = case
    return named
