"""contract/callout.py for the native callout: `python -m flexdriver.header` prints it as a C header.

So there is one truth, and a change of the protocol or of a message reaches both programs.
"""

import json
import sys
from collections.abc import Mapping

from contract import callout, names


def text(deadlines: Mapping[str, int] = callout.DEADLINES) -> str:
    """The header. A status comes with all that stands before an answer's message, so that the program can both write
    and recognise the form that contract.callout.answer gives it. Deadlines in seconds."""
    end = '"}'
    strings = {
        "INIT": callout.INIT,
        "INIT_ANSWER": callout.INIT_ANSWER,
        "SUCCESS": callout.answer(callout.SUCCESS, "").removesuffix(end),
        "FAILURE": callout.answer(callout.FAILURE, "").removesuffix(end),
        "NOT_SUPPORTED": callout.answer(callout.NOT_SUPPORTED, "").removesuffix(end),
        "ANSWER_END": end,
        "NO_VERB": callout.NO_VERB,
        "NOT_IMPLEMENTED": callout.NOT_IMPLEMENTED,
        "AWAY": callout.AWAY,
        "BUSY": callout.BUSY,
        "BROKEN_OFF": callout.BROKEN_OFF,
        "NO_SENSE": callout.NO_SENSE,
        "REQUEST_HEAD": callout.REQUEST_HEAD.replace("%d", "%zu"),
        "SOCKET": names.SOCKET,
        "SOCKET_VARIABLE": names.SOCKET_VARIABLE,
    }
    verbs = ", ".join(f"{{{_literal(verb)}, {seconds}}}" for verb, seconds in deadlines.items())
    return "\n".join(
        [
            "/* Made from contract/callout.py by flexdriver/header.py. */",
            *(f"#define {name} {_literal(value)}" for name, value in strings.items()),
            f"#define ANSWER_LIMIT {callout.ANSWER_LIMIT}",
            f"#define VERBS {{{verbs}}}",
            "",
        ]
    )


def _literal(value: str) -> str:
    """A string of C. What JSON escapes in plain ASCII, C escapes in the same way."""
    assert value.isascii()
    return json.dumps(value)


if __name__ == "__main__":
    sys.stdout.write(text())
