"""Options that several commands have. Nothing here knows what the commands do: help and completion are quick."""

import contextlib
import enum
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from contract import names

_NO_READER = 128 + signal.SIGPIPE
"""Exit code, as a shell has it for a program that wrote to a pipe which nobody reads any more, such as one to head."""
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A label of RFC 1123, as the API server asks it of namespaces."""


class Form(enum.StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"

    @property
    def structured(self) -> bool:
        """For programs, with all fields."""
        return self in (Form.JSON, Form.YAML)


@contextlib.contextmanager
def _ending_with_its_reader() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # What is left to be written at the end has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(_NO_READER) from None


class Commands(TyperGroup):
    """Commands as kubectl has them: without one it shows help, which is no mistake, and options that several of them
    have may come before it."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        with _ending_with_its_reader():  # help is shown here
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        with _ending_with_its_reader():
            return super().invoke(ctx)

    _SHARED = ("-n", "-o", "--namespace", "--output", "--context", "--kubeconfig")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        before = self._options_before(args)
        words = args[before:]
        if not words and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit()
        end = words.index("--") if "--" in words else len(words)
        return super().parse_args(ctx, [*words[:end], *args[:before], *words[end:]])

    def _options_before(self, args: list[str]) -> int:
        """How many of the words they are, with their values."""
        count = 0
        while count < len(args):
            name = args[count].partition("=")[0] if args[count].startswith("--") else args[count][:2]
            if name not in self._SHARED:
                break
            count += 2 if args[count] == name else 1
        return min(count, len(args))


class VolumeSource(enum.StrEnum):
    """The volume sources of contract.volume."""

    CSI = "csi"
    FLEX_VOLUME = "flexVolume"


def _output(meaning: str, *forms: Form) -> Any:
    """`--output` of a command that has these forms. Another one is refused: it would change nothing."""

    def read(text: str) -> Form:
        if (form := _attached(text)) not in forms:
            raise typer.BadParameter(f"{form!r} is not one of {', '.join(forms)}.")
        return Form(form)

    def complete(begun: str) -> list[str]:
        return [form for form in forms if form.startswith(begun)]

    return typer.Option(
        "--output", "-o", parser=read, metavar=f"[{'|'.join(forms)}]", autocompletion=complete, help=meaning
    )


def _attached(text: str) -> str:
    """The value of a short option. kubectl takes `-o=json`, too, where others see `=json`."""
    return text.removeprefix("=")


WideOutput = Annotated[Form, _output("Output format: wide has more columns, name has names alone.", *Form)]
Output = Annotated[Form, _output("Output format: name has names alone.", Form.TABLE, Form.JSON, Form.YAML, Form.NAME)]
ReportOutput = Annotated[Form, _output("Output format.", Form.TABLE, Form.JSON, Form.YAML)]
Kubeconfig = Annotated[
    str | None,
    typer.Option(envvar="KUBECONFIG", help="Path of a kubeconfig. Default: as kubectl; in a pod, its service account."),
]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig. Default: the current one.")]


@dataclass(frozen=True)
class ApiAccess:
    """How to reach the API server. None: as nobody said."""

    kubeconfig: str | None = None
    context: str | None = None


def _namespace(text: str) -> str:
    name = _attached(text)
    if not _NAMESPACE.fullmatch(name):
        raise typer.BadParameter(
            f"{name!r} is not a valid namespace: allowed are up to 63 lower case letters, digits and -."
        )
    return name


Namespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        "-n",
        envvar="NAMESPACE",
        parser=_namespace,
        metavar="<str>",
        help="Namespace in which elastic-local is installed.",
    ),
]
DataDir = Annotated[
    Path, typer.Option(envvar="DATA_DIR", help="Data directory of the daemon. Groups on files are in it.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
DATA_DIR = Path(names.DATA_DIR)
