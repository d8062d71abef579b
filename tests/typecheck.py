"""The run-time type checker of the tests, which tests/conftest.py installs."""

from beartype import BeartypeConf, beartype

# As PEP 484 has it, an int is a float too.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
