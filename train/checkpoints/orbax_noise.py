"""Silences Orbax's threads and tasks, which print dozens of tracebacks when a save fails. We report the error once."""

import logging
import sys
import threading
import warnings

_quiet: list = []


def quiet() -> None:
    """Silences Orbax from now on. Errors of other code are still shown."""
    if _quiet:
        return
    _quiet.append(True)
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.ERROR or "/orbax/" not in record.pathname
    )
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = _without(sys.unraisablehook)
    threading.excepthook = _without(threading.excepthook)


def _without(hook):
    def shown(what):
        if not (_of_orbax(what.exc_traceback) or "Event loop is closed" in str(what.exc_value)):
            hook(what)

    return shown


def _of_orbax(traceback) -> bool:
    while traceback is not None:
        if "/orbax/" in traceback.tb_frame.f_code.co_filename:
            return True
        traceback = traceback.tb_next
    return False
