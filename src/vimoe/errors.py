"""The one exception for everything a user can get wrong."""


class UserError(ValueError):
    """A mistake in what the user gave: a path, a name, a shape, a key, a value.

    The message is one line that says what is wrong, where, and what would do.
    The command line prints it on stderr and exits with code 2; libraries catch it as a `ValueError`.
    """
