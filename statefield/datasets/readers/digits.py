"""Whole numbers in the text of files, whose digits need not be ASCII, nor few."""

from __future__ import annotations


def whole_number(text: str) -> int | None:
    """The number of one to nine decimal digits, or None: `int` also takes "1_0", and refuses 5,000 digits.

    >>> whole_number("640"), whole_number("²"), whole_number("-1"), whole_number("")
    (640, None, None, None)
    """
    return int(text) if 0 < len(text) <= 9 and text.isascii() and text.isdigit() else None
