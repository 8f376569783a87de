"""What an option or an argument may be, checked where the caller gives it: types, ranges, and text that can be carried.

A value that passes is safe wherever it goes. Types are checked before anything is done with a value, and a value that
is refused is shown as far as it can be: its `repr` may fail, or be endless.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import sniffio

from p2pmesh.errors import ConfigError, MeshError

T = TypeVar("T")

MOST = float(1 << 53)
"""No number is larger: beyond it the numbers of other languages and of JSON are no longer exact."""
_SHOWN = 60


def shown(value: object) -> str:
    """A value as the text of an error shows it: short, in characters that every terminal can print."""
    if isinstance(value, int) and not -MOST <= value <= MOST:
        return "a number of that size"
    try:
        text = ascii(value)
    except Exception:  # ruff: ignore[blind-except] - it is the caller's `__repr__`, which may do anything
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def unshown(value: object) -> str:
    """What the `repr` of something public shows of a payload or a secret: its kind. Reprs end in logs."""
    return f"<{type(value).__name__}>"


def number(what: str, value: Any, *, low: float = -MOST, high: float = MOST, whole: bool = False) -> Any:
    """A number from `low` to `high`: an `int`, or if it need not be whole a `float`. Booleans and NaN are none.

    Raises:
      ConfigError: if it is anything else.
    """
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ConfigError(f"{what} must be {kind}, not {shown(value)}")
    if not low <= value <= high or (isinstance(value, int) and value > MOST):  # so large a one may be no float
        bounds = f"from {low:g} to {high:g}" if high < MOST else f"{low:g} or more, below 2**53"
        raise ConfigError(f"{what} must be {kind}, {bounds}, not {shown(value)}")
    return int(value) if whole else float(value)


def flag(what: str, value: object) -> bool:
    """True or False.

    Raises:
      ConfigError: if it is anything else.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{what} must be True or False, not {shown(value)}")
    return value


def text(
    what: str,
    value: object,
    longest: float = math.inf,
    *,
    secret: bool = False,
    error: type[MeshError] = ConfigError,
) -> str:
    """Text that UTF-8 can write, of at most `longest` characters, as a plain `str`. A secret one is never shown.

    Raises:
      error: if it is anything else.
    """
    limit = "" if longest == math.inf else f" of at most {longest:g} characters"
    if not isinstance(value, str):
        raise error(f"{what} must be text{limit}, not {type(value).__name__ if secret else shown(value)}")
    plain = str.__str__(value)
    if len(plain) > longest:
        raise error(f"{what} must be text{limit}, not {len(plain)} of them")
    try:
        plain.encode()
    except UnicodeEncodeError:
        which = "" if secret else f": {shown(plain)}"
        raise error(f"{what} must be text that UTF-8 can carry, without half a surrogate pair{which}") from None
    return plain


def instance(what: str, value: T, kind: Any) -> T:
    """A value of this class.

    Raises:
      ConfigError: if it is of another.
    """
    if not isinstance(value, kind):
        name = getattr(kind, "__name__", str(kind))
        article = "an" if name[0] in "AEIOU" else "a"
        raise ConfigError(f"{what} must be {article} {name}, not {shown(value)}")
    return value


def file_path(what: str, value: Any) -> Path:
    """The path of a file, which need not be there.

    Raises:
      ConfigError: if it is none.
    """
    try:
        path = Path(value)
        os.fsencode(path)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{shown(value)} can't be the path of {what}: {error}") from None
    if "\0" in str(path):
        raise ConfigError(f"{shown(str(path))} can't be the path of {what}: it has a NUL in it")
    return path


def in_trio(what: str) -> None:
    """Refuse a call from outside of Trio, which would fail somewhere deep within.

    Raises:
      ConfigError: if the caller is no task of Trio.
    """
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        library = "nothing"
    if library != "trio":
        raise ConfigError(
            f"{what} runs on Trio: start the program with trio.run(main), or from asyncio with"
            " await asyncio.to_thread(trio.run, main)"
        )


# --- fields of configs ------------------------------------------------------------------------------------------------


def checked(check: Callable[[str, Any], object], **options: Any) -> Any:
    """An `attrs.field` whose value `check` has to let pass, which is told its name."""

    def validate(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        check(f"{type(owner).__name__}.{attribute.name}", value)

    return attrs.field(validator=validate, **options)


def number_field(default: float, *, low: float = 0, high: float = MOST) -> Any:
    """A field for a number from `low` to `high`: a whole one if the default is an `int`."""
    return checked(partial(number, low=low, high=high, whole=isinstance(default, int)), default=default)


def flag_field(*, default: bool) -> Any:
    """A field that is True or False."""
    return checked(flag, default=default)


def text_field(default: Any = attrs.NOTHING, longest: float = math.inf, *, secret: bool = False) -> Any:
    """A field for text of at most `longest` characters; or None, if that is its default."""

    def check(what: str, value: object) -> None:
        if value is not None or default is not None:
            text(what, value, longest, secret=secret)

    return checked(check, default=default, repr=not secret)
