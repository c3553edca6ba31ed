"""The tables of the README, held against what the programs read: names, who reads them, and defaults."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import daemon.settings
import provisioner.settings
from command import programsettings
from contract import parameters
from contract.filesystems import FILESYSTEMS
from contract.parameters import ERASE, LINEAR, MOUNT_OPTIONS_OPTION, RAID1, ParameterError
from tests.unit.heard import Heard

README = (Path(__file__).parents[3] / "README.md").read_text()


def table(first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column has that heading, without the headings."""
    _, rest = README.split(f"\n| {first_heading} |")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def words(cell: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


VARIABLES = {name: (readers, default) for names, readers, default, _ in table("variable") for name in words(names)}
PARAMETERS = {words(name)[0]: (values, default) for name, values, default in table("parameter")}
DEFAULTS = [
    (name, default)
    for names, _, defaults, _ in table("variable")
    for name, default in zip(words(names), words(defaults), strict=False)
    if default not in VARIABLES
]
"""Of variables whose default is a value. Some are only described."""

GIVEN = {"NODE_NAME": "node-1", "STATIC_CONFIG_DIR": "/etc/static"}
"""What makes the daemon read all that it may read."""


def asked(read: Callable[[Mapping[str, str]], object]) -> set[str]:
    environment = Heard(GIVEN)
    read(environment)
    return environment.asked


def readers(program: str) -> set[str]:
    return {name for name, (reader, _) in VARIABLES.items() if {program, "both"} & set(reader.split(", "))}


def test_every_variable_is_in_the_table_with_who_reads_it() -> None:
    # What they read of the first of two names is not asked of the second.
    assert asked(daemon.settings.read) | {"MY_NODE_NAME"} == readers("daemon")
    assert asked(provisioner.settings.read) == readers("provisioner")
    assert readers("daemon") | readers("provisioner") == VARIABLES.keys()


@pytest.mark.parametrize("program", ["daemon", "provisioner"])
def test_help_has_the_settings_of_the_table(program: str) -> None:
    settings = [each for topic in programsettings.TOPICS[program].values() for each in topic]
    assert sorted(each.name for each in settings) == sorted(readers(program))
    defaults = dict(DEFAULTS)
    assert {each.name: each.default for each in settings if each.default} == {
        each.name: defaults[each.name] for each in settings if each.name in defaults
    }


def test_there_are_defaults_to_hold_against_the_programs() -> None:
    assert {"STAGING_DIR", "ERASE_RATE", "NODE_LOSS_DELAY", "DISCOVERY_PERIOD", "LOG_LEVEL"} <= dict(DEFAULTS).keys()


def of_the_provisioner(environment: Mapping[str, str]) -> provisioner.settings.Settings:
    """Without the identity, which is another one each time."""
    return replace(provisioner.settings.read(environment), identity="")


@pytest.mark.parametrize(("name", "default"), DEFAULTS)
def test_a_variable_that_says_its_default_changes_nothing(name: str, default: str) -> None:
    for program, read in (("daemon", daemon.settings.read), ("provisioner", of_the_provisioner)):
        if name in readers(program):
            assert read({**GIVEN, name: default}) == read(GIVEN)


def known_parameters() -> set[str]:
    with pytest.raises(ParameterError) as error:
        parameters.parse({"?": ""})
    return set(str(error.value).partition("there are ")[2].split())


def test_every_parameter_is_in_the_table() -> None:
    assert PARAMETERS.keys() == known_parameters() | {MOUNT_OPTIONS_OPTION}


BESIDE = {
    "encryption": {"volumeSource": "csi", parameters.SECRET_NAME: "key", parameters.SECRET_NAMESPACE: "storage"},
}
"""Parameters that others take with them."""


@pytest.mark.parametrize("key", sorted(PARAMETERS.keys() - {MOUNT_OPTIONS_OPTION}))
def test_values_and_default_of_a_parameter_are_taken(key: str) -> None:
    values, default = PARAMETERS[key]
    for value in words(values):
        # A name of one of the tables is not a value but a reference.
        if value not in (VARIABLES.keys() | PARAMETERS.keys()):
            read = parameters.parse({key: value, **BESIDE.get(key, {})})
            assert parameters.from_options(parameters.to_options(read, 1 << 30), read.filesystem) == read
    if default.startswith("`"):
        assert parameters.parse({key: words(default)[0]}) == parameters.parse({})


@pytest.mark.parametrize("key", sorted(known_parameters()))
def test_a_bad_value_is_refused_by_the_name_of_its_parameter(key: str) -> None:
    with pytest.raises(ParameterError) as error:
        parameters.parse({key: "-/\n"})
    assert error.value.key == key


@pytest.mark.parametrize(
    ("key", "allowed"),
    [("fsType", tuple(FILESYSTEMS)), ("erase", ERASE), ("raid", (LINEAR, RAID1)), ("thin", ("true", "false"))],
)
def test_a_parameter_with_few_values_names_them_all(key: str, allowed: tuple[str, ...]) -> None:
    assert set(words(PARAMETERS[key][0])) == set(allowed)
