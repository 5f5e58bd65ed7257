"""The one exception for what a user can mend."""


class UserError(Exception):
    """Something the user gave cannot be used; the commands print it without a traceback and exit with code 2.

    problems: one line each, saying what is wrong, with the figures, and how to mend it.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems
