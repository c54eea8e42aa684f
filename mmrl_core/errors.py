"""Errors whose message is all that a person needs: a mistake of the user's, or something that failed."""


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do.

    The command line prints it on stderr and exits with 2; every other exception exits with 1.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Failed(RuntimeError):
    """Something went wrong that is not the user's doing, and the message says what and where: exit 1, no traceback."""
