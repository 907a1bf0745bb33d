"""Text from outside (names of files and classes, answers of servers), made safe for the place where it is shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text for one line of a terminal or a log: what is not printable stands there as Python would write it.

    Control characters could move the cursor or start a new line, and the halves of a name that is not UTF-8 (surrogates)
    cannot be encoded.
    """
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
