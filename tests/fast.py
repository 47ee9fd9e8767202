"""`pytest --fast`: without what slow_tests.txt names, so that the rest is done in a few minutes.

A list of files, not of measured times: what is slow here is a kind of test (it compiles large programs, trains, starts
processes), and a file holds one kind. So that the list stays true, a fast run ends with the tests that took too long
for it. What counts is the processor's time, of child processes too: the machine may be busy with other things.
"""

import resource
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("slow_tests.txt")
_TOO_LONG = 15.0  # seconds of processor time, with programs from the compile cache
_began = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="without the files and folders of tests/slow_tests.txt")


def slow() -> list[Path]:
    """Files and folders of slow_tests.txt."""
    lines = (line.partition("#")[0].strip() for line in LIST.read_text().splitlines())
    return [ROOT / line for line in lines if line]


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--fast") and any(collection_path.is_relative_to(path) for path in slow()):
        return True
    return None  # others may have an opinion


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[_began] = _processor_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown":  # the report takes the properties along, from workers too
        item.user_properties.append(("processor_seconds", _processor_seconds() - item.stash[_began]))
    return (yield)


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--fast"):
        return
    for report in terminalreporter.stats.get("", []):  # teardowns that went well
        if (seconds := dict(report.user_properties).get("processor_seconds", 0.0)) > _TOO_LONG:
            terminalreporter.write_line(
                f"slow: {report.nodeid} took {seconds:.0f} seconds of processor time; if it does again, name its file "
                "in tests/slow_tests.txt"
            )


def _processor_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
