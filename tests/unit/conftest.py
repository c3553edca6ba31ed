"""Marker `virtual_time`: the test runs in an event loop of that kind (tests/unit/virtualtime.py)."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tests.unit.virtualtime import VirtualTimeLoop


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_time: seconds pass when nobody has anything to do, and then at once")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual time": VirtualTimeLoop}
    return {"real time": asyncio.new_event_loop}
