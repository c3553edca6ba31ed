"""The manual page, made from the commands."""

from tests.unit.command.test_main import ALL
from tools import manpage


def test_the_manual_has_each_command_and_option() -> None:
    text = manpage.page().replace("\\-", "-")
    for word, command in ALL.items():
        assert f"\n.SS {word}" in text
        section = text.partition(f"\n.SS {word}")[2].partition("\n.SS ")[0]
        for parameter in command.params:
            for option in (each for each in parameter.opts if each.startswith("--")):
                assert option in section
    assert ".B DRIVER_KIND" in text.partition("\n.SS daemon")[2].partition("\n.SS ")[0]
    assert "\n.B --output, -o [table|json|yaml]\n" in text.partition("\n.SS doctor")[2].partition("\n.SS ")[0]
    assert "\n.B --to <csi|flexVolume>\n" in text
    assert "\n.B --yes\n" in text
    requests = {line.split()[0] for line in text.splitlines() if line.startswith((".", "'"))}
    assert requests == {".TH", ".SH", ".SS", ".B", ".I", ".TP", ".PP"}
