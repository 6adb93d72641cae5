"""Text as a person gets it: how many there are, and lines that leave a terminal as it is."""

from __future__ import annotations

__all__ = ["counted", "printable"]


def counted(count: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "tensor"), counted(1200, "tensor"), counted(2, "pass")
        ('1 tensor', '1,200 tensors', '2 passes')
    """
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def printable(text: str) -> str:
    """One line as a terminal may get it: what moves, colours or hides other text is spelled out.

    Example:
        >>> printable("fc\\x1b[2J.weight\\n")
        'fc\\\\x1b[2J.weight\\\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
