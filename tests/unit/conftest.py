"""Marker `virtual_time`: the test runs in an event loop of that kind (tests/unit/virtualtime.py).
Marker `both_loops`: it runs in asyncio's own, and in uvloop's, which the provisioner has."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.unit.virtualtime import VirtualTimeLoop


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_time: seconds pass when nobody has anything to do, and then at once")
    config.addinivalue_line("markers", "both_loops: once in asyncio's event loop, and once in uvloop's")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual time": VirtualTimeLoop}
    if item.get_closest_marker("both_loops"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"real time": asyncio.new_event_loop}
