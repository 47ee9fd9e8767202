"""Errors whose message is meant for the user: a config that can't be run, and a process that is missing."""

import contextlib


class ConfigError(Exception):
    """A config that cannot be run; the message says which field and what to do."""


@contextlib.contextmanager
def checking(what: str):
    """Turns ValueError and TypeError inside into ConfigError, with `what` in front of the message.

    It is for objects that check their own arguments and know nothing of configs.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{what}: {error}") from error


class ProcessMissing(Exception):
    """Other processes of the run did not reach a barrier in time; the message names them."""
