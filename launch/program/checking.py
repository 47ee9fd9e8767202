"""ConfigError: what a user asked for cannot be run."""

import contextlib


class ConfigError(Exception):
    """A config that cannot be run; the message says which field and what to do."""


@contextlib.contextmanager
def checking(what: str):
    """Turns the errors of objects that check themselves into ConfigError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{what}: {error}") from error


class ProcessMissing(Exception):
    """Other processes of the run did not come to where all meet; the message names them."""
