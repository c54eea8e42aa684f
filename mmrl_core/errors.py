"""Errors whose message is all that a person needs: a mistake of the user's, or something that failed."""

BAD = 3  # exit status of a check whose verdict is that what it looked at is Damaged


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do.

    The command line prints it on stderr and exits with 2; every other exception exits with 1.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Several(UserError):
    """Mistakes of one kind that can be put right together: all of them in `problems`, the first few in the message."""

    def __init__(self, what: str, problems: list[str], most: int = 5):
        more = f"; and {len(problems) - most} more" if len(problems) > most else ""
        super().__init__(f"{len(problems)} {what}: {'; '.join(problems[:most])}{more}")
        self.problems = problems


def refuse_all(what: str, problems: list[str]) -> None:
    """Raises UserError on one problem, Several on more, and nothing on none."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise Several(what, problems)


class Damaged(UserError):
    """Content that is not what was saved: altered, cut short or malformed. A verdict on the content alone: trying again
    gives the same, and nothing about the machine is meant by it."""


class Failed(RuntimeError):
    """Something went wrong that is not the user's doing, and the message says what and where: exit 1, no traceback."""
