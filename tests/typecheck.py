"""The run-time type checker that tests/conftest.py installs."""

from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)  # PEP 484 accepts an int as a float
check = beartype(conf=CONF)
