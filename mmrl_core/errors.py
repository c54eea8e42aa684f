"""The one error class that stands for a mistake of the user's, not of the program's."""


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do.

    The command line prints it on stderr and exits with 2; every other exception exits with 1.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
