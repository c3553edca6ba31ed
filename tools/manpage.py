"""elastic-local(1), the manual page, written from the commands themselves: `make man`. Source of the format: man(7)."""

from collections.abc import Iterator
from importlib import metadata

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from command.main import app
from command.programsettings import ProgramCommand

_PROGRAM = "elastic-local"


def page() -> str:
    """In roff."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    lines = [
        f'.TH {_PROGRAM.upper()} 1 "" "elastic-local {metadata.version("elastic-local")}" "User Commands"',
        ".SH NAME",
        f"{_PROGRAM} \\- {_text(_first_line(root))}",
        ".SH SYNOPSIS",
        f".B {_PROGRAM}",
        ".I COMMAND",
        "[OPTION]...",
        ".SH DESCRIPTION",
        _text(root.help or ""),
        "It is also a plugin of kubectl: `kubectl elastic-local`.",
    ]
    lines += [".SH COMMANDS", *_commands(root, ())]
    return "\n".join(lines) + "\n"


def _commands(group: TyperGroup, path: tuple[str, ...]) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, (*path, name))
        elif isinstance(command, TyperCommand) and not command.hidden:
            yield f".SS {' '.join((*path, name))}{_arguments(command)}"
            yield from (_text(paragraph) + "\n.PP" for paragraph in (command.help or "").split("\n\n"))
            for parameter in command.params:
                if isinstance(parameter, TyperOption) and not parameter.hidden:
                    yield ".TP"
                    yield f".B {', '.join(map(_text, parameter.opts))}{_value(parameter)}"
                    yield _text(_described(parameter))
            if isinstance(command, ProgramCommand):
                for topic, settings in command.topics.items():
                    yield f".PP\n{_text(topic)}, from the environment:"
                    for setting in settings:
                        yield f".TP\n.B {_text(setting.name)}\n{_text(setting.described)}"


def _arguments(command: TyperCommand) -> str:
    shown = (each.metavar or (each.name or "").upper() for each in command.params if isinstance(each, TyperArgument))
    return "".join(f" {_text(each)}" for each in shown)


def _value(option: TyperOption) -> str:
    """What may follow it, as help has it."""
    if option.is_flag:
        return ""
    kind = "|".join(getattr(option.type, "choices", ())) or option.type.name
    return f" {_text(option.metavar or f'<{kind}>')}"


def _described(option: TyperOption) -> str:
    variable = option.envvar if isinstance(option.envvar, str) else ""
    return f"{option.help or ''}{f' Environment variable: {variable}.' if variable else ''}"


def _first_line(command: TyperCommand | TyperGroup) -> str:
    return (command.help or "").partition("\n")[0]


def _text(text: str) -> str:
    """Text in which nothing is a request of roff."""
    escaped = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    print(page(), end="")
