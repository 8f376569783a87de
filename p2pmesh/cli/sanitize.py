"""Makes text of strangers safe to print on a terminal."""

from __future__ import annotations

import re
import unicodedata

_ESCAPES = re.compile(
    r"""
      (?:\x1b\[|\x9b) [0-?]* [ -/]* [@-~]?                      # CSI: colours, cursor moves
    | (?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]) [^\x07\x1b\x9c]* (?:\x07|\x1b\\|\x9c)?  # OSC, DCS: titles, links
    | \x1b [ -/]* [0-~]?                                        # the short ones
    """,
    re.VERBOSE,
)
_HIDDEN = {"Cc", "Cf", "Cs", "Cn"}
"""Unicode's control, format (turning the direction of text round, zero width), surrogate and unassigned characters."""
_JOINER = "\N{ZERO WIDTH JOINER}"
"""The one format character that stays: it holds emoji together."""


def printable(text: str, limit: int) -> str:
    """`text` on one line without escape sequences and control characters, cut to `limit` characters."""
    visible = _ESCAPES.sub("", text[: limit * 4])  # cut first: what is thrown away below should not cost time
    line = "".join(_visible(character) for character in visible)
    return line if len(line) <= limit and len(text) <= limit * 4 else f"{line[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def _visible(character: str) -> str:
    if character.isspace():
        return " "
    if unicodedata.category(character) in _HIDDEN and character != _JOINER:
        return ""
    return character
