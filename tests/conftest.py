"""Fixtures for every test that needs something real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog
from processes import BrokerProcess

# On a developer's machine properties are tried with new examples every time; a change is judged by
# the same ones as the last.
hypothesis.settings.register_profile("same examples", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("same examples")


@pytest.fixture(autouse=True)
def plain_logs() -> None:
    """What a test hears of the log does not depend on what another one configured."""
    structlog.reset_defaults()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A running broker of the test's own: `url`, `login()`, `credentials(role)`; `stop`, `kill`,
    `start` (same port, same data), `pause`, `resume`.
    """
    process = BrokerProcess(tmp_path)
    process.start()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One broker for all tests that leave it running and use names of their own."""
    process = BrokerProcess(tmp_path_factory.mktemp("shared-broker"))
    process.start()
    yield process
    process.kill()
