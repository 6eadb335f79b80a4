"""The server on which the tests of this folder play."""

import pytest

from bge_pipeline_tests.chaos.rounds import Chaos


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    """A server of its own, which a round may stop."""
    chaos = Chaos(tmp_path_factory.mktemp("chaos"))
    yield chaos
    chaos.close()
