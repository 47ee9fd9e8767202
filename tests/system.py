"""Installs the programs that tests need and pip cannot install; system_packages.txt lists them.

    python -m tests.system        # installs what is missing, or prints the command if it is not root or has no apt

A test that needs such a program is marked `@pytest.mark.needs("chromium")`, and is skipped where the program is missing
(needs.py). With TESTS_SKIP_NOTHING=1, which .ci/run sets, a missing program is an error, here and in the test. This
file imports only the standard library, because it runs first.
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_name("system_packages.txt")
_SECONDS = 600  # time limit of each apt-get command
# Without a network, fail at once. If another apt-get holds the lock, wait for it.
_APT = ("-qq", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=120")


class Program(NamedTuple):
    """One line of system_packages.txt."""

    name: str
    packages: tuple[str, ...]
    command: str  # a shell command that exits with 0 if the program works

    def there(self) -> bool:
        done = subprocess.run(self.command, shell=True, stdin=subprocess.DEVNULL, capture_output=True)
        return done.returncode == 0


def listed() -> dict[str, Program]:
    """Returns the programs of system_packages.txt by name."""
    lines = (line for line in LIST.read_text().splitlines() if line.strip() and not line.startswith("#"))
    rows = ([part.strip() for part in line.split("|")] for line in lines)
    return {name: Program(name, tuple(packages.split()), command) for name, packages, command in rows}


@functools.cache
def missing() -> tuple[Program, ...]:
    """Returns the programs that are missing or don't work. Each process checks only once."""
    return tuple(program for program in listed().values() if not program.there())


def lack(name: str) -> str | None:
    """Returns why a test that needs this program cannot run, or None if it can.

    Raises:
      KeyError: the list has no such program.
    """
    program = listed()[name]
    if program not in missing():
        return None
    return f"needs {name}, which is missing or does not work ({program.command}): {_command([program])}"


def strict() -> bool:
    """Returns whether a missing program is an error."""
    return os.environ.get("TESTS_SKIP_NOTHING", "") not in ("", "0")


def _command(programs) -> str:
    packages = [package for program in programs for package in program.packages]
    return f"sudo apt-get install --no-install-recommends --yes {' '.join(packages)}"


def _install(programs) -> str:
    """Tries to install the programs. Returns one line on what went wrong, or ""."""
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
    """Installs what is missing. Returns 1 if a program is still missing and that is an error, else 0."""
    lacking, reason = missing(), ""
    if not lacking:
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {', '.join(program.name for program in lacking)} (takes about a minute)", flush=True)
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
