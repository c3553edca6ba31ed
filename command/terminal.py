"""Text as a terminal may have it, whoever wrote it, and whatever terminal and locale it is for."""

import os
import re
import sys
from typing import Any, TextIO

import typer


def visible(text: str) -> str:
    """In one line, and with nothing that a terminal would obey: nodes and the API server say what others wrote."""
    line = re.sub(r"[\t\n\v\f\r]+", " ", text).rstrip()
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def in_unicode(stream: TextIO) -> bool:
    """Whether all letters and signs can be written there."""
    return (getattr(stream, "encoding", None) or "").lower().startswith("utf")


def in_colour(text: str, **style: Any) -> str:
    """The text, in colour where there is a terminal that wants it. Sources: no-color.org, term(7)."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return typer.style(text, **style) if wanted else text
