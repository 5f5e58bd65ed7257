"""The one exception for what a user can mend, and what other exceptions say."""


class UserError(Exception):
    """Something the user gave cannot be used; the commands print it without a traceback and exit with code 2.

    problems: one line each, saying what is wrong, with the figures, and how to mend it.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback."""
        return [f"error: {problem}" for problem in self.problems]


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, which is all that a user needs of it; "" where it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]
