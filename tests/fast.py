"""Adds `pytest --fast`, which skips the files of slow_tests.txt, so that the rest ends within a few minutes.

The list names files and not measured times: a test is slow because of its kind (it compiles large programs, trains, or
starts processes), and all tests of a file are of one kind. To keep the list up to date, a fast run ends with the names
of the tests that took too long. It measures CPU time, child processes included, because the machine may be busy with
other work.
"""

import resource
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("slow_tests.txt")
_TOO_LONG = 15.0  # seconds of CPU time, if the compiled programs are already cached
_began = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="skip the files and folders of tests/slow_tests.txt")


def slow() -> list[Path]:
    """Returns the files and folders that slow_tests.txt lists."""
    lines = (line.partition("#")[0].strip() for line in LIST.read_text().splitlines())
    return [ROOT / line for line in lines if line]


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--fast") and any(collection_path.is_relative_to(path) for path in slow()):
        return True
    return None  # None leaves the decision to other plugins


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[_began] = _processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown":  # the report carries the properties from xdist's workers to the main process
        item.user_properties.append(("processor_seconds", _processor_seconds() - item.stash[_began]))
    return (yield)


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--fast"):
        return
    for report in terminalreporter.stats.get("", []):  # the key "" has the setups and teardowns that passed
        if (seconds := dict(report.user_properties).get("processor_seconds", 0.0)) > _TOO_LONG:
            terminalreporter.write_line(
                f"slow: {report.nodeid} took {seconds:.0f} seconds of CPU time; if this happens again, list its file "
                "in tests/slow_tests.txt"
            )


def _processor_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
