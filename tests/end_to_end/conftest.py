import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of programs that tests start, with the shared compilation cache."""
    return dict(os.environ)


@pytest.fixture(scope="session")
def shared_programs(environment) -> dict[str, str]:
    """The environment of runs of several processes: process 0 compiles for all of them."""
    paths = str(Path(__file__).parent / "site"), environment.get("PYTHONPATH")
    return environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_SHARE_BINARY_BETWEEN_HOSTS": "1",
    }
