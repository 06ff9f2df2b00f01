"""What is said of images that cannot be used: they are left out, and one warning counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Problem = tuple[str, str]
"""Why something is left out, in words that follow its number, and its name."""

MISSING = "named but not there"
UNLISTED = "without an entry"
TWICE = "listed more than once"
SAME_NAME = "of the same name as another"
NO_PART = "of no part, though others are"
LINK = "that are links out of the folder"
BROKEN = "damaged or in no format that is read"
MODE = "neither 8-bit grey nor RGB"
OTHER_SIZE = "of another size than their entry says"
CROWD = "with a box around a crowd"
NO_AREA = "with a box of no area"
OUTSIDE = "with a box outside the image"
ORPHAN = "annotations of images that are not listed"


def told(problems: Sequence[Problem]) -> str:
    """How many are left out and why, with the name of the first of each kind. Kinds are in the order of their first.

    Example:
        >>> told([(MISSING, "a.png"), (BROKEN, "b.png"), (MISSING, "c.png")])
        '3 are left out: 2 named but not there (a.png); 1 damaged or in no format that is read (b.png).'
    """
    counts = Counter(kind for kind, _ in problems)
    first = dict(reversed(problems))
    reasons = "; ".join(f"{count} {kind} ({first[kind]})" for kind, count in counts.items())
    return f"{len(problems)} are left out: {reasons}."
