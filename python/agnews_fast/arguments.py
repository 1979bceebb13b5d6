"""Checks of what a caller gives, whose errors name the argument and say what was expected and what came."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path


def as_integer(name: str, value: object) -> int:
    """The argument ``name`` as an int; raises TypeError unless it is one, of Python or NumPy."""
    if isinstance(value, bool) or not (isinstance(value, int) or _is_numpys(value, "integer")):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def as_integer_between(name: str, value: object, lowest: int, highest: int) -> int:
    """`as_integer`; raises ValueError for one below ``lowest`` or above ``highest``."""
    integer = as_integer(name, value)
    if not lowest <= integer <= highest:
        raise ValueError(f"{name}: expected {lowest} to {highest}, got {value}")
    return integer


def check_flag(name: str, value: object) -> None:
    """Raises TypeError unless the argument ``name`` is a bool, of Python or NumPy."""
    if not (isinstance(value, bool) or _is_numpys(value, "bool_")):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def _is_numpys(value: object, kind: str) -> bool:
    """Whether ``value`` is an instance of NumPy's class ``kind``: of none, while nobody has imported NumPy."""
    return isinstance(value, getattr(sys.modules.get("numpy"), kind, ()))


def as_path(name: str, value: str | os.PathLike[str]) -> Path:
    """The argument ``name`` as a path.

    Raises:
        TypeError: it is neither a str nor a path.
        FileNotFoundError: it is empty, which `Path` takes for the current folder.
        ValueError: it has characters that no path may have.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise TypeError(f"{name}: expected str or os.PathLike[str], got {type(value).__name__}")
    if path == "":
        raise FileNotFoundError(errno.ENOENT, f"{name}: expected a path, got an empty one")
    try:
        valid = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ValueError(f"{name}: expected a path, got {path!r}")
    return Path(path)
