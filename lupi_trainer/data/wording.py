"""Words that agree with their number. Nothing heavy is imported here."""


def counted(number: int, what: str) -> str:
    """ "1 step", "2 steps": a number and what it counts."""
    return f"{number} {what}{'s' * (number != 1)}"
