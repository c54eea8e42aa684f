"""Errors whose message is all that a person needs: a mistake of the user's, or something that failed."""

BAD = 3  # exit status of a check whose verdict is that what it looked at is Damaged


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do.

    The command line prints it on stderr and exits with 2; every other exception exits with 1.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Damaged(UserError):
    """Content that is not what was saved: altered, cut short or malformed. A verdict on the content alone: trying again
    gives the same, and nothing about the machine is meant by it."""


class Failed(RuntimeError):
    """Something went wrong that is not the user's doing, and the message says what and where: exit 1, no traceback."""
