"""What a person types: every word answers at once, and every answer can be had as JSON."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import typer
import typer.testing
from typer.core import TyperCommand, TyperGroup

from command import starting
from command.main import app
from contract import names

PROGRAMS = ("daemon", "provisioner")
NOWHERE = "elastic-local: kubeconfig /nowhere can't be used: there is no such file"


def words(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, TyperCommand]]:
    if isinstance(command, TyperGroup):
        for name, below in command.commands.items():
            yield from words(below, (*path, name))
    else:
        assert isinstance(command, TyperCommand)
        yield " ".join(path), command


ALL = dict(words(typer.main.get_command(app)))


def imported(statement: str) -> set[str]:
    """Packages, and modules of ours, that a fresh interpreter has after it."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return {module.partition(".")[0] for module in shown}


def test_help_and_completion_load_nothing_of_what_the_words_do() -> None:
    assert not imported("import command.main") & {"aiohttp", "yaml", "daemon", "provisioner", "lvm"}


def test_the_provisioner_does_not_carry_the_daemon() -> None:
    loaded = imported("import command.main, provisioner.main")
    assert not loaded & {"daemon", "lvm", "host", "grpclib", "rich"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs_without_what_commands_need(program: str) -> None:
    run = f"""
import os, sys
from command import entrypoints
sys.argv[1:] = [{program!r}]
os.environ.update(NODE_NAME="n", LOG_LEVEL="LOUD")
try:
    entrypoints.main()
except SystemExit as ended:
    assert ended.code == 2
"""
    loaded = imported(run)
    assert {program, "aiohttp"} <= loaded
    assert not loaded & {"typer", "rich"}


def forms(word: str) -> list[str]:
    """Those that `-o` of a command takes, as its help has them."""
    shown = [option.metavar for option in ALL[word].params if option.name == "output"]
    return shown[0].strip("[]").split("|") if shown and shown[0] else []


def test_every_answer_can_be_had_as_json() -> None:
    assert {word for word in ALL if not {"json", "yaml"} <= set(forms(word))} == set(PROGRAMS)


@pytest.mark.parametrize("word", sorted(set(ALL) - set(PROGRAMS)))
def test_a_form_that_would_change_nothing_is_refused(word: str) -> None:
    taken = forms(word)
    module = importlib.import_module(f"command.{word.split()[-1] if word == 'flexdriver install' else word.split()[0]}")
    assert ("wide" in taken) == any(column.wide for column in getattr(module, "_COLUMNS", ()))
    for form in {"name", "wide", "jsonpath"} - set(taken):
        done = typer.testing.CliRunner().invoke(app, [*word.split(), "-o", form])
        assert done.exit_code == 2
        assert f"'{form}' is not one of {', '.join(taken)}." in done.output


@pytest.mark.parametrize("name", ["Bad_NS", "a/b", "..", "", "x" * 64])
def test_a_name_that_no_namespace_can_have_is_refused(name: str) -> None:
    done = typer.testing.CliRunner().invoke(app, ["capacity", "-n", name])
    assert done.exit_code == 2
    assert "is not a valid namespace" in done.output


def test_a_short_option_is_read_as_kubectl_reads_it() -> None:
    for words in (["-n=storage", "-o=yaml"], ["-nstorage", "-oyaml"], ["--namespace=storage", "--output=yaml"]):
        done = typer.testing.CliRunner().invoke(app, ["capacity", *words, "--kubeconfig", "/nowhere"])
        assert (done.exit_code, done.stderr.partition(";")[0]) == (1, NOWHERE)


def test_options_that_contradict_each_other_are_refused() -> None:
    for words in ("volumes --cluster --local", "adopt --yes --manifest", "adopt --manifest -o name"):
        done = typer.testing.CliRunner().invoke(app, words.split())
        assert done.exit_code == 2
        assert "Error: Invalid value for --" in done.output


def completion(*words: str) -> list[str]:
    """As kubectl asks its plugins, which takes descriptions off and reads the number at the end."""
    program = Path(sys.executable).with_name("kubectl_complete-elastic_local")
    shown = subprocess.run([program, *words], capture_output=True, text=True, check=True)
    *offered, number = shown.stdout.split()
    assert number == ":4"
    return offered


@pytest.mark.parametrize("word", ALL)
def test_every_word_says_what_it_does_in_its_first_line(word: str) -> None:
    assert (ALL[word].help or "").partition("\n")[0].rstrip()


def test_a_shell_completes_the_words() -> None:
    """As bash asks: the words so far, and which one is being typed."""
    asked = {"COMP_WORDS": "elastic-local vg ", "COMP_CWORD": "2", "_ELASTIC_LOCAL_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [Path(sys.executable).with_name("elastic-local")],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["create", "extend", "remove", "list"], done.stderr


def test_kubectl_completes_the_words() -> None:
    assert completion("vg", "") == ["create", "extend", "remove", "list"]
    assert completion("volumes", "--wa") == ["--watch"]
    assert completion("doctor", "-o", "") == ["table", "json", "yaml"]


def test_help_is_kubectls() -> None:
    runner = typer.testing.CliRunner()
    for arguments in (["-h"], ["--help"], ["volumes", "-h"], ["vg", "create", "-h"]):
        shown = runner.invoke(app, arguments)
        assert shown.exit_code == 0
        assert "-h, --help" in shown.output
        assert "<bool>" not in shown.output


def test_help_lists_each_command_in_a_line_and_is_no_mistake() -> None:
    """On a terminal of 80 columns, as which the runner is."""
    runner = typer.testing.CliRunner()
    for words in ([], ["vg"], ["flexdriver"]):
        shown = runner.invoke(app, words)
        assert shown.exit_code == 0
        assert shown.output == runner.invoke(app, [*words, "--help"]).output
        listed = shown.output.partition("Commands:\n")[2].splitlines()
        assert len(listed) == len({word.split()[len(words)] for word in ALL if word.startswith(" ".join(words))})
        assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_help_has_longer_lines_on_a_wider_terminal() -> None:
    words = [str(Path(sys.executable).with_name("elastic-local")), "adopt", "--help"]
    environment = {**os.environ, "COLUMNS": "200"}
    shown = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert 100 < max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize(
    "words",
    [
        "-n storage -o json --kubeconfig /nowhere capacity",
        "-nstorage -o=json --kubeconfig=/nowhere volumes --cluster",
        "--context far --kubeconfig /nowhere migrate -- a/b",
    ],
)
def test_shared_options_may_come_before_the_command(words: str) -> None:
    done = typer.testing.CliRunner().invoke(app, words.split())
    assert (done.exit_code, done.stderr.partition(";")[0]) == (1, NOWHERE)


def test_an_option_before_a_command_that_has_it_not_is_refused() -> None:
    done = typer.testing.CliRunner().invoke(app, ["-n", "storage", "vg", "list"])
    assert (done.exit_code, "No such option: -n" in done.output) == (2, True)
    assert typer.testing.CliRunner().invoke(app, ["-n"]).exit_code == 0


def test_help_of_a_program_groups_its_settings_by_topic() -> None:
    """As plain text, on each terminal."""
    runner = typer.testing.CliRunner()
    shown = runner.invoke(app, ["daemon", "--help"], env={"NO_COLOR": "1", "TERM": "dumb"}).output
    assert "\x1b" not in shown
    topics = re.findall(r"^(\w.*) \(environment\):$", shown, re.MULTILINE)
    assert topics[:2] == ["Node and API server", "Storage"]
    storage = shown.partition("Storage (environment):")[2].partition("\n\n")[0]
    assert re.search(r"^  DRIVER_KIND +LVM, LOOP", storage, re.MULTILINE)


def test_kubectl_finds_it_as_a_plugin() -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["kubectl", "elastic-local", "flexdriver", "--help"],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "install" in done.stdout, done.stderr
    assert done.stdout.startswith("Usage: kubectl elastic-local flexdriver [OPTIONS]")


def test_what_flexdriver_install_did_as_json(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("elastic-local")), "flexdriver", "install", "-o", "json"]

    def run() -> list[dict[str, object]]:
        environment = {**os.environ, "PLUGIN_DIR": f"{tmp_path}/one:{tmp_path}/two"}
        document: list[dict[str, object]] = json.loads(
            subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        )
        return document

    first, second = run(), run()
    places = [str(tmp_path / name / names.DRIVER_FOLDER / names.DRIVER_NAME) for name in ("one", "two")]
    assert [each["path"] for each in first] == places
    assert ([each["changed"] for each in first], [each["changed"] for each in second]) == ([True] * 2, [False] * 2)


def told(stderr: str) -> str:
    """By a process of its own, besides what it may say where the processors are busy."""
    return stderr.replace(f"{starting.NOTICE}\n", "")


_SHOWS = """
import sys
from command import entrypoints, main, table
from command.options import Form
column = table.Column(title="share", cell=lambda row: f"{table.share(row, 4)} \u20ac")
main.app.command("show")(lambda: table.show([1], [column], Form.TABLE, nothing=""))
sys.argv[1:] = ["show"]
entrypoints.main()
"""


def test_a_table_is_for_each_locale() -> None:
    def shown(encoding: str) -> str:
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", _SHOWS], env=environment, capture_output=True, check=True)
        return done.stdout.decode(encoding).splitlines()[1]

    assert shown("utf-8") == "████░░░░░░░░░░░░  25 % \u20ac"
    assert shown("latin-1") == "####............  25 % \\u20ac"


def test_an_answer_that_can_not_be_written_is_a_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", _SHOWS], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, told(done.stderr)) == (
        1,
        "elastic-local: the answer can't be written: No space left on device\n",
    )


@pytest.mark.parametrize("words", ["show", "--help", "vg", "volumes --help"])
def test_it_ends_with_the_reader_of_its_output(words: str) -> None:
    argv = [sys.executable, "-c", _SHOWS.replace('["show"]', repr(words.split()))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as closed:
        assert closed.stdout
        closed.stdout.close()  # as `| head` does
        assert closed.stderr
        assert told(closed.stderr.read().decode()) == ""
        assert closed.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vg /dev/sdb --any-disk", "not both"),
        ("vg /dev/sdb --loop-size 1Gi", "not both"),
        ("vg --loop-size much", "--loop-size"),
        ("vg --loop-size 1Mi", "too small for a volume group"),
        ("-vg --any-disk", "No such option"),
        ("../vg --any-disk", "is not a valid name of a volume group"),
    ],
)
def test_what_no_group_can_be_made_of_is_a_mistake_of_usage(words: str, message: str) -> None:
    refused = typer.testing.CliRunner().invoke(app, ["vg", "create", *words.split()])
    assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr


def test_the_version_is_that_of_the_installed_package() -> None:
    shown = typer.testing.CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"elastic-local {metadata.version('elastic-local')}\n")


def without_linux(*words: str) -> "subprocess.CompletedProcess[str]":
    program = Path(__file__).with_name("withoutlinux.py")
    return subprocess.run([sys.executable, program, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("words", ["volumes --cluster", "doctor --cluster", "migrate"])
def test_the_cluster_can_be_asked_without_linux(words: str) -> None:
    done = without_linux(*words.split(), "--kubeconfig", "/nowhere")
    assert (done.returncode, told(done.stderr).partition(";")[0]) == (1, NOWHERE)


@pytest.mark.parametrize("words", ["volumes", "doctor", "vg list", "daemon"])
def test_what_is_asked_of_a_node_says_so_without_linux(words: str) -> None:
    done = without_linux(*words.split())
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert ("add --cluster" in done.stderr) == (words in ("volumes", "doctor"))
    assert "darwin" in done.stderr
