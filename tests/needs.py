"""The marker of tests that need a program beside Python: `@pytest.mark.needs("chromium")` (system_packages.txt).

Such a test is skipped where the program is missing, and the end of a run names it; with TESTS_SKIP_NOTHING=1 it fails.
"""

import pytest

from tests import system


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "needs(*names): programs of tests/system_packages.txt without which it can't run"
    )


def pytest_runtest_setup(item):
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if why := system.lack(name):
                pytest.fail(why, pytrace=False) if system.strict() else pytest.skip(why)


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if reason.startswith("Skipped: needs "):
            name = reason.split()[2].rstrip(",")
            terminalreporter.write_line(f"not run, as {name} is missing: {report.nodeid} (python -m tests.system)")
