"""The programs that run for months."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import uvloop

import provisioner.main
from command import programs


def test_the_provisioner_has_what_reads_changes_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    async def run(settings: object, read_json: Callable[[bytes], Any] = json.loads) -> None:
        seen.extend((type(asyncio.get_running_loop()), read_json))

    monkeypatch.setattr(provisioner.main, "run", run)
    programs.provisioner()
    assert seen == [uvloop.Loop, orjson.loads]
