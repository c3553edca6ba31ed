"""A claim that begins as a copy of another one's data."""

from kube.resources import CLAIMS
from tests.cluster.acceptance.trial import Trial
from tests.sandbox.workloads import claim


async def test_a_copy_has_the_content_and_then_a_life_of_its_own(namespace: Trial) -> None:
    await namespace.create(CLAIMS, claim("source", "32Mi"))
    home = await namespace.run("writer", "echo precious > /data/word", {"/data": "source"})
    data_source = {"kind": "PersistentVolumeClaim", "name": "source"}
    await namespace.create(CLAIMS, claim("copy", "48Mi", dataSource=data_source))
    script = "grep -q precious /data/word; echo other > /data/word"
    assert await namespace.run("changer", script, {"/data": "copy"}) == home
    await namespace.run("owner", "grep -q precious /data/word", {"/data": "source"})

    await namespace.delete(CLAIMS, "source")
    await namespace.until_gone(CLAIMS, "source")
    await namespace.run("heir", "grep -q other /data/word", {"/data": "copy"})
