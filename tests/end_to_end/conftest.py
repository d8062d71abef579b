import os

import pytest


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Programs compiled by one run are found by the next, since all runs here are of one model."""
    cache = tmp_path_factory.mktemp("xla")
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
