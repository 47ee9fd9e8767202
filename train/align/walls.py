"""Builds bubblewrap's command line: what a process in the sandbox may do and can see (sandbox.py)."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

INSIDE = Path(__file__).with_name("inside_sandbox.py")
PYTHON = Path(sys.executable).resolve()  # of the base installation, if this Python is a virtual environment's


class SandboxError(RuntimeError):
    """This machine can't give the sandbox. The message says why, and what to do."""


@functools.cache
def around(folder: int) -> tuple[str, ...]:
    """Returns the words that start bwrap: namespaces, rights and what the code can see, except packages."""
    version = _version()
    # Setting oom_score_adj needs no rights. A shell does it before bwrap starts, because it is inherited.
    words = ["/bin/sh", "-c", 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$@"', "sh"]
    words += [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() == 0:  # inside_sandbox.py uses these two to become another user, which drops them
        words += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
        words += ["--disable-userns"] * (version >= (0, 8))
    words += _read_only("/usr")
    for name in ("/bin", "/lib", "/lib64"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        elif os.path.exists(name):
            words += _read_only(name)
    words += _folders("/dev", "/etc", "/packages")
    for path in ("/tmp", "/dev/shm"):
        words += ["--perms", "1777", *(["--size", str(folder)] if version >= (0, 7) else []), "--tmpfs", path]
    words += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    if not PYTHON.is_relative_to("/usr"):
        library = Path(os.__file__).resolve().parents[1]  # PREFIX/lib, of PREFIX/lib/python3.11/os.py
        words += _folders(*sorted({*PYTHON.parents, *library.parents} - {Path("/")}))
        words += [*_read_only(PYTHON), *_read_only(library)]
    words += _read_only(INSIDE, f"/{INSIDE.name}")
    for device in ("null", "zero", "random", "urandom"):
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return tuple(words)


def packages(names: Sequence[str]) -> Iterator[str]:
    """Yields bwrap's words for packages, with the libraries that their wheels keep in a folder beside them."""
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None:
            raise SandboxError(f"code in the sandbox can't import {name!r}: no package of that name is installed")
        path = Path([*(spec.submodule_search_locations or ()), spec.origin or ""][0])
        yield from _read_only(path, f"/packages/{path.name}")
        if (libraries := path.with_name(f"{name}.libs")).is_dir():
            yield from _read_only(libraries, f"/packages/{libraries.name}")


def advice(stderr: str) -> str:
    """Returns what to do about an error of bwrap."""
    if not re.search("permission|permitted|namespace", stderr, re.IGNORECASE):
        return ""
    if os.geteuid() == 0:
        return (
            "\nThe container forbids namespaces. Start it with --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined, or privileged"
        )
    return (
        "\nThe system forbids namespaces to users. An administrator allows them with sysctl "
        "kernel.unprivileged_userns_clone=1 (Debian) or kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 24.04)"
    )


def _folders(*paths: str | Path) -> list[str]:
    """Returns bwrap's words for folders above mount points. Those that it makes by itself are open only to root."""
    return [word for path in paths for word in ("--perms", "0755", "--dir", str(path))]


def _read_only(path: str | Path, seen_as: str = "") -> list[str]:
    return ["--ro-bind", str(path), seen_as or str(path)]


def _version() -> tuple[int, ...]:
    done = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return tuple(map(int, re.findall(r"\d+", done.stdout)[:2]))
