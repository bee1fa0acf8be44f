"""The one exception for everything a user can get wrong, and the words that its messages share."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a path, a name, a shape, a key, a value.

    The message is one line that says what is wrong, where, and what would do.
    The command line prints it on stderr and exits with code 2; libraries catch it as a `ValueError`.
    """


def first_line(error: Exception) -> str:
    """What another library's exception says, cut to one line; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def suggest(wrong: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them where none is near."""
    known = list(known)
    near = difflib.get_close_matches(wrong, known, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; there is {', '.join(known) or 'none'}"
