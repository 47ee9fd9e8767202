"""Programs that tests need and pip cannot bring, listed in system_packages.txt.

    python -m tests.system        # installs what is missing: as root, where there is apt; else it says the one command

A test that needs one is marked `@pytest.mark.needs("chromium")` and is skipped where it is missing (needs.py). With the
variable TESTS_SKIP_NOTHING=1, which .ci/run sets, what is missing is an error, here and in the test. Imports the
standard library alone.
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_name("system_packages.txt")
_SECONDS = 600  # for all of it
# A machine without a network should hear of it at once, and one that is installing something else is waited for.
_APT = ("-qq", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=120")


class Program(NamedTuple):
    """One line of the list."""

    name: str
    packages: tuple[str, ...]
    command: str  # of a shell; its status says whether the program is there

    def there(self) -> bool:
        done = subprocess.run(self.command, shell=True, stdin=subprocess.DEVNULL, capture_output=True)
        return done.returncode == 0


def listed() -> dict[str, Program]:
    """The programs of the list by name."""
    lines = (line for line in LIST.read_text().splitlines() if line.strip() and not line.startswith("#"))
    rows = ([part.strip() for part in line.split("|")] for line in lines)
    return {name: Program(name, tuple(packages.split()), command) for name, packages, command in rows}


@functools.cache
def missing() -> tuple[Program, ...]:
    """Those that are not there, or don't work; asked once a process."""
    return tuple(program for program in listed().values() if not program.there())


def lack(name: str) -> str | None:
    """Why a test that needs this program can't run; None: it can.

    Raises:
      KeyError: the list has no such program.
    """
    program = listed()[name]
    if program not in missing():
        return None
    return f"needs {name}, which is not there or does not work ({program.command}): {_command([program])}"


def strict() -> bool:
    """Whether what is missing is an error."""
    return os.environ.get("TESTS_SKIP_NOTHING", "") not in ("", "0")


def _command(programs) -> str:
    packages = [package for program in programs for package in program.packages]
    return f"sudo apt-get install --no-install-recommends --yes {' '.join(packages)}"


def _install(programs) -> str:
    """Try it; what went wrong, in a line."""
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update",), tuple(_command(programs).split()[2:])):
        command = ["apt-get", *_APT, *words]
        try:
            done = subprocess.run(command, env=quiet, stdin=subprocess.DEVNULL, timeout=_SECONDS, capture_output=True)
        except subprocess.TimeoutExpired:
            return f"apt-get {words[0]} took more than {_SECONDS} s"
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines() or ["no reason given"]
            return f"apt-get {words[0]} failed: {said[-1]}"
    return ""


def main() -> int:
    """Install what is missing; 1 where something still is, and that is an error."""
    lacking, reason = missing(), ""
    if not lacking:
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {', '.join(program.name for program in lacking)} (a minute)", flush=True)
        reason = _install(lacking)
        missing.cache_clear()
        lacking = missing()
        if not lacking:
            return 0
    names = ", ".join(program.name for program in lacking)
    why = f" ({reason})" if reason else ""
    what = "error: tests need" if strict() else "tests that need them are skipped:"
    print(f"{what} {names}{why}. To install:\n  {_command(lacking)}", file=sys.stderr, flush=True)
    return int(strict())


if __name__ == "__main__":
    sys.exit(main())
