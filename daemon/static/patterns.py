"""Name patterns as Go's filepath.Match reads them, several by comma.

Not fnmatch: there `[!x]` negates and a backslash stands for itself; here it is `[^x]` and the backslash escapes. A
malformed pattern is an error at once, and not only when a name happens to get that far.
"""

import re
from collections.abc import Callable


class PatternError(ValueError):
    """A pattern that can't be read."""

    def __init__(self, pattern: str, what: str) -> None:
        super().__init__(f"malformed name pattern {pattern!r}: {what}")


def matcher(patterns: str) -> Callable[[str], bool]:
    """Whether a name matches one of the patterns. Raises PatternError."""
    compiled = [re.compile(_expression(pattern), re.DOTALL) for pattern in patterns.split(",")]
    return lambda name: any(expression.fullmatch(name) for expression in compiled)


def _expression(pattern: str) -> str:
    expression, position = "", 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*":
            expression += "[^/]*"
        elif character == "?":
            expression += "[^/]"
        elif character == "[":
            ranges, position = _class(pattern, position)
            expression += ranges
        elif character == "\\":
            if position == len(pattern):
                raise PatternError(pattern, "a backslash needs a character after it")
            expression += re.escape(pattern[position])
            position += 1
        else:
            expression += re.escape(character)
    return expression


def _class(pattern: str, position: int) -> tuple[str, int]:
    """The expression of a character class and where it ends. `position` is that after the opening bracket."""
    negated = pattern[position : position + 1] == "^"
    position += negated
    ranges: list[str] = []
    while pattern[position : position + 1] != "]" or not ranges:
        low, position = _member(pattern, position)
        high = low
        if pattern[position : position + 1] == "-":
            high, position = _member(pattern, position + 1)
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    members = "".join(ranges)
    if negated:
        return (f"[^{members}]" if members else "."), position + 1
    return (f"[{members}]" if members else "(?!)"), position + 1


def _member(pattern: str, position: int) -> tuple[str, int]:
    character = pattern[position : position + 1]
    if character == "\\":
        position += 1
        character = pattern[position : position + 1]
    elif character in ("-", "]"):
        raise PatternError(pattern, f"{character!r} in a character class needs a backslash before it")
    if not character or position + 1 == len(pattern):
        raise PatternError(pattern, "a character class needs a closing bracket")
    return character, position + 1
