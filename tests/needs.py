"""Defines the marker of tests that need a program besides Python: `@pytest.mark.needs("chromium")`.

The programs are listed in system_packages.txt. Where one is missing, the test is skipped, and the end of the run says
so. With TESTS_SKIP_NOTHING=1 the test fails instead.
"""

import pytest

from tests import system


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*names): programs of tests/system_packages.txt that the test needs")


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
            terminalreporter.write_line(f"not run, because {name} is missing: {report.nodeid} (python -m tests.system)")
