"""Answers: are two equal, what is wrong with one, how is it shown, and how does it travel between processes."""

from __future__ import annotations

import base64
import math
import numbers

import numpy as np
import torch
from torch import Tensor

LONGEST = 120  # characters of an answer in a message


def plain(value):
    """An answer in the few types that are compared: NumPy's become Python's and torch's."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()) if value.dtype.kind in "biuf" else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.nn.Parameter):
        return value.detach()
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else tuple(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def type_name(value) -> str:
    """What an answer is, in words; a list and a tuple are the same here."""
    names = ((bool, "True or False"), (numbers.Integral, "a whole number"), (numbers.Real, "a float"))
    names += ((str, "a text"), ((list, tuple), "a list or tuple"), (dict, "a dict"), (Tensor, "a tensor"))
    for kind, name in names:
        if isinstance(value, kind):
            return name
    return "None" if value is None else f"an object of type {type(value).__name__}"


def type_problem(got, expected) -> str | None:
    """How the type of an answer is wrong, if it is: "gave a text, expected a tensor"."""
    if type_name(got) != type_name(expected):
        return f"gave {type_name(got)}, {shown(got)}, expected {type_name(expected)}"
    if not isinstance(expected, Tensor):
        return None
    if got.shape != expected.shape:
        return f"gave a tensor of shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if number_kind(got) != number_kind(expected):
        return f"gave a tensor of {got.dtype}, expected {expected.dtype}"
    return None


def number_kind(tensor: Tensor) -> str:
    """The precision of a tensor is free; whether it holds truths, whole numbers or others is not."""
    if tensor.dtype == torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "int"


def equal(got, expected, tolerance: float = 0.0) -> bool:
    """Whether two answers agree; floats within `tolerance` × the largest number of `expected`."""
    if type_problem(got, expected):
        return False
    if isinstance(expected, Tensor):
        return tensors_equal(got, expected, tolerance)
    if isinstance(expected, dict):
        same_keys = got.keys() == expected.keys()
        return same_keys and all(equal(got[key], expected[key], tolerance) for key in expected)
    if isinstance(expected, (list, tuple)):
        return len(got) == len(expected) and all(equal(a, b, tolerance) for a, b in zip(got, expected))
    if isinstance(expected, float):
        return got == expected or math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance * 1e-6)
    return got == expected


def tensors_equal(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether no number is further off than `tolerance` times the largest."""
    if not expected.is_floating_point() or expected.numel() == 0:
        return torch.equal(got.long(), expected.long())
    got, expected = got.double(), expected.double()
    finite = expected.isfinite()
    if not torch.equal(got.isfinite(), finite) or not torch.equal(got[~finite], expected[~finite]):
        return False
    scale = expected[finite].abs().max() if finite.any() else 1.0
    return bool(((got[finite] - expected[finite]).abs() <= tolerance * scale).all())


def shown(value) -> str:
    """An answer as a short text."""
    if isinstance(value, Tensor):
        if value.numel() > 12:
            return f"a tensor of shape {tuple(value.shape)}"
        return f"tensor({shown(value.tolist())})"
    if isinstance(value, float):
        return f"{value:.6g}"
    return shortened(nested(value))


def nested(value) -> str:
    """A text of lists, tuples and dicts, whatever is in them."""
    if type(value) is list:
        return f"[{', '.join(map(shown, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(shown, value))}{',' if len(value) == 1 else ''})"
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {shown(item)}" for key, item in value.items()) + "}"
    try:
        return " ".join(repr(value).split())
    except Exception:
        return type_name(value)


def shortened(text: str) -> str:
    """At most LONGEST characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def as_grid(value) -> list[list] | None:
    """The rows of an answer that can be drawn as a small grid of whole numbers or truths, else None."""
    if isinstance(value, Tensor):
        small = value.ndim == 2 and max(value.shape, default=0) <= 12 and not value.is_floating_point()
        return value.tolist() if small else None
    if not isinstance(value, (list, tuple)) or not 1 < len(value) <= 12:
        return None
    rows = [list(row) for row in value if isinstance(row, (list, tuple))]
    whole = all(isinstance(item, int) for row in rows for item in row)
    same_length = len(rows) == len(value) and len({len(row) for row in rows}) == 1
    return rows if whole and same_length and 1 < len(rows[0]) <= 12 else None


def side_by_side(got, expected) -> str | None:
    """Two grids of the same size beside each other, a * at each number that differs; None if they are no grids."""
    left, right = as_grid(got), as_grid(expected)
    if left is None or right is None or len(left) != len(right) or len(left[0]) != len(right[0]):
        return None
    texts = [[str(int(item)) for item in row] for row in left + right]
    width = max(len(text) for row in texts for text in row) + 1
    lines = [f"    {'yours':{len(left[0]) * (width + 1)}}    expected"]
    for ours, theirs in zip(left, right):
        marked = "".join(f"{int(a):>{width}}{'*' if a != b else ' '}" for a, b in zip(ours, theirs))
        plain_row = "".join(f"{int(b):>{width}} " for b in theirs)
        lines.append(f"    {marked}    {plain_row}".rstrip())
    return "\n".join(lines)


def encode(value):
    """An answer as JSON can hold it. What an answer cannot be becomes {"other": its type}."""
    if isinstance(value, Tensor):
        wide = value.detach().cpu()
        wide = wide.double() if wide.is_floating_point() else wide.long()
        data = base64.b64encode(wide.numpy().tobytes()).decode()
        return {"tensor": data, "shape": list(wide.shape), "kind": number_kind(value)}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"other": type(value).__name__}


class Other:
    """Stands for an object that did not travel."""


def decode(value):
    """The inverse of `encode`; a damaged text raises ValueError, KeyError or TypeError."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(decode(item) for item in value["tuple"])
    if "dict" in value:
        return {decode(key): decode(item) for key, item in value["dict"]}
    if "tensor" in value:
        kind = {"float": np.float64, "int": np.int64, "bool": np.int64}[value["kind"]]
        numbers_ = np.frombuffer(base64.b64decode(value["tensor"]), dtype=kind).copy()
        tensor = torch.from_numpy(numbers_.reshape(value["shape"]))
        return tensor.bool() if value["kind"] == "bool" else tensor
    return Other()
