import os

import pytest


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of programs that tests start, with the shared compilation cache."""
    return dict(os.environ)
