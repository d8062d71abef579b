import os

import pytest


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of the programs that tests start: that of the tests, with its compiled programs."""
    return dict(os.environ)
