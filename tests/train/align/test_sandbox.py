"""Code in the sandbox ends within its limits, can't fool us by an early exit, and is never run without walls."""

import concurrent.futures
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.train.align.inside import attempt, said
from train.align import sandbox, walls
from train.align.sandbox import Limits

ROOT = Path(__file__).resolve().parents[3]
QUICK = Limits(seconds=2)
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
pytestmark = pytest.mark.needs("bubblewrap")


def test_parts_share_a_module_and_are_compiled_apart():
    assert sandbox.run("def double(x):\n    return 2 * x", "assert double(4) == 8").passed
    # An open quote at the end of the code does not swallow the tests.
    assert sandbox.run("x = 1\n'''", "assert x == 2").status == "failed"
    assert not sandbox.run("x = '''", "'''\nassert False").passed
    dataclass = "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 3\nprint(A(), __name__)"
    assert said(dataclass) == "A(x=3) __main__\n"
    assert said("print(__name__)", name="answer") == "answer\n"


def test_processes_and_threads_work():
    code = """if True:
        import multiprocessing, subprocess, sys, tempfile, concurrent.futures
        def double(x):
            return 2 * x
        with multiprocessing.Pool(2) as pool:
            print(pool.map(double, [1, 2]))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            print(list(pool.map(double, [3, 4])))
        with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
            print("print(6)", file=file, flush=True)
            print(subprocess.run([sys.executable, file.name], capture_output=True, text=True).stdout)
    """
    assert said(code, limits=Limits(seconds=60)).split("\n") == ["[2, 4]", "[6, 8]", "6", "", ""]


def test_what_a_run_says():
    result = sandbox.run("import sys\nprint(input())\nprint('é', file=sys.stderr)\nsys.exit(3)", stdin="ä\nb")
    assert result._replace(seconds=0) == ("failed", 3, "ä\n", "é\n", 0, False)
    result = sandbox.run("def f():\n    return 1 / 0\nf()")
    assert result.status == "failed" and "<part 1>" in result.stderr and "return 1 / 0" in result.stderr
    assert "inside_sandbox" not in result.stderr
    assert sandbox.run("x = (").stderr.endswith("SyntaxError: '(' was never closed\n")
    assert "null bytes" in sandbox.run("x = '\0'").stderr
    assert sandbox.run("print('\ud800')").status == "failed"
    assert sandbox.run("import ctypes\nctypes.string_at(0)")[:2] == ("killed", -11)


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "print('started ok passed 1 test OK', flush=True); import os; os._exit(0)",
        "import atexit, os; atexit.register(os._exit, 0); 1 / 0",
        "import os\nfor fd in range(3, 1000):\n  try: os.write(fd, b'started ' * 9)\n  except OSError: 0\nos._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os\nif os.fork():\n    os._exit(0)\nos._exit(0)",
        "import sys; sys.stdout.close(); sys.stderr.close(); sys.exit()",
        "import threading, os, time\nthreading.Thread(target=lambda: os._exit(0)).start()\ntime.sleep(1)",
    ],
)
def test_an_early_exit_is_not_a_pass(code):
    assert not sandbox.run(code, "assert 1 == 2", limits=QUICK).passed


def test_the_end_is_told_apart_from_an_exit():
    assert sandbox.run("x = 1").ended
    assert sandbox.run("import sys; sys.exit(0)")[:2] == ("ok", 0)
    assert not sandbox.run("import sys; sys.exit(0)").ended


@pytest.mark.parametrize(
    "code, status",
    [
        ("while True: pass", "timeout"),
        ("import time; time.sleep(1000)", "timeout"),
        ("while True: print('x' * 10_000)", "timeout"),
        ("import sys\nwhile True: sys.stderr.write('x' * 10_000)", "timeout"),
        (
            "import signal, time\nfor n in (1, 2, 13, 15, 24): signal.signal(n, signal.SIG_IGN)\ntime.sleep(1000)",
            "timeout",
        ),
        ("import os, time\nos.closerange(0, 1000)\ntime.sleep(1000)", "timeout"),
        (BOMB, "timeout"),
        ("import re; re.match('(a+)+$', 'a' * 50 + 'b')", "timeout"),
    ],
)
def test_what_never_ends_is_ended(code, status):
    limits = Limits(seconds=1)
    result = sandbox.run(code, limits=limits)
    assert result.status == status and not result.ended
    assert result.seconds < 1 + 5 and len(result.stdout) + len(result.stderr) < 2 * limits.output + 100


def test_limits_can_not_be_raised():
    code = "import resource as r\nprint(r.getrlimit(r.RLIMIT_CPU), r.getrlimit(r.RLIMIT_AS)[1] == 2**30)"
    assert said(code, limits=Limits(seconds=29.5)) == "(30, 31) True\n"
    for limit in ("AS", "CPU", "FSIZE", "NPROC", "NOFILE", "CORE"):
        raised = f"import resource as r; r.setrlimit(r.RLIMIT_{limit}, (r.RLIM_INFINITY, r.RLIM_INFINITY))"
        assert "not allowed to raise maximum limit" in sandbox.run(raised).stderr


@pytest.mark.parametrize(
    "code, error",
    [
        ("x = bytearray(10**10)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "MemoryError"),
        ("import mmap; mmap.mmap(-1, 10**10)", "Cannot allocate memory"),
        ("f = open('big', 'wb')\nwhile True: f.write(bytes(10**6))", "File too large"),
        ("open('big', 'wb').truncate(10**10)", "File too large"),
        ("x = [open('/dev/null') for _ in range(1000)]", "Too many open files"),
        ("import _thread, time\nwhile True: _thread.start_new_thread(time.sleep, (9,))", "can't start new thread"),
        ("import os, signal\nfor _ in range(1000): os.fork() or signal.pause()", "Resource temporarily unavailable"),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)  # fmt: skip
def test_what_is_too_much_fails(code, error):
    result = sandbox.run(code, limits=Limits(seconds=30))
    assert result.status == "failed" and error in result.stderr, result


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_the_files_of_a_folder_are_limited_together(folder):
    code = f"""if True:
        for count in range(99):
            try:
                open(f"{folder}/{{count}}", "wb").write(bytes(10 << 20))
            except OSError as error:
                print(count, error.strerror)
                break
    """
    assert said(code, limits=Limits(seconds=30)) == "6 No space left on device\n"  # 6 x 10 MiB of 64 MiB are there


def test_many_small_files_end_with_the_sandbox():
    before = os.statvfs("/tmp")
    result = sandbox.run("i = 0\nwhile True:\n    open(f'{i}', 'w').close()\n    i += 1", limits=Limits(seconds=1))
    assert result.status in ("timeout", "failed")
    assert os.statvfs("/tmp").f_ffree > before.f_ffree - 10_000  # the files were in memory


def test_several_at_once_from_threads_do_not_disturb_each_other():
    """A fork bomb uses up its own processes, not those of the runs beside it."""
    forks = "import os\nfor pid in [os.fork() or os._exit(0) for _ in range(20)]: os.waitpid(pid, 0)\nprint({})"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        bomb = pool.submit(sandbox.run, BOMB, limits=Limits(seconds=3))
        results = [pool.submit(sandbox.run, forks.format(n), limits=Limits(seconds=60)) for n in range(12)]
        assert [result.result().stdout for result in results] == [f"{n}\n" for n in range(12)]
        assert bomb.result().status == "timeout"


def test_the_same_code_says_the_same():
    code = "print(list({str(n) for n in range(50)}), hash('a'))"
    assert said(code) == said(code)


def test_packages_only_on_request():
    assert attempt("import numpy") == "ModuleNotFoundError"
    assert (
        said("import numpy; print(numpy.ones((300, 300)) @ numpy.ones(300) @ numpy.ones(300))", packages=("numpy",))
        == "90000.0\n"
    )
    with pytest.raises(sandbox.SandboxError, match="can't import 'no_such_package'"):
        sandbox.run("pass", packages=("no_such_package",))


def test_a_machine_without_it_refuses(monkeypatch):
    """There is no way to run code with less protection."""
    monkeypatch.setattr(sandbox, "_works", False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "apt-get install bubblewrap" in sandbox.why_not()
    with pytest.raises(sandbox.SandboxError, match="no bwrap"):
        sandbox.run("pass")
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "_works", False)
    # A container that forbids namespaces.
    monkeypatch.setattr(
        walls,
        "around",
        lambda folder: ["/bin/sh", "-c", "echo bwrap: No permissions to create a new namespace >&2; exit 1", "sh"],
    )
    assert "No permissions" in (why := sandbox.why_not()) and ("SYS_ADMIN" in why or "sysctl" in why)
    with pytest.raises(sandbox.SandboxError):
        sandbox.run("pass")


def test_an_interrupted_call_leaves_nothing(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    sandbox.why_not()
    processes, start, before = [], subprocess.Popen, len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(start(*a, **k)) or processes[-1])
    monkeypatch.setattr(sandbox, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sandbox.run("import time; time.sleep(600)")
    assert processes[0].poll() is not None and len(os.listdir("/proc/self/fd")) == before
