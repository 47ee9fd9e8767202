"""Code in the sandbox can't see, write, reach or outlive what is outside."""

import concurrent.futures
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.train.align.inside import attempt, said
from train.align import sandbox, walls

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.needs("bubblewrap")


def test_a_folder_of_its_own_every_time():
    code = "import os\nprint(os.getcwd(), os.listdir())\nopen('mine', 'w').write('x')\nprint(os.listdir())"
    assert said(code) == said(code) == "/tmp []\n['mine']\n"


def test_nothing_of_ours_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret-in-the-environment")
    secret = tmp_path / "secret"
    secret.write_text("secret-in-a-file")
    secret.chmod(0o644)
    for path in ("/root/.bashrc", "/home", "/etc/passwd", "/etc/shadow", "/proc", "/sys", "/var", "/run", ROOT, secret):
        assert attempt(f"os.stat({str(path)!r})") == "FileNotFoundError", path
    seen = said(
        "import os\nfor folder, inner, files in os.walk('/'):\n    print(folder, files)\n"
        "    inner[:] = {*inner} - {'usr', 'lib'}\n"
        "print(dict(os.environ))"
    )
    assert "secret" not in seen and "MY_TOKEN" not in seen and str(ROOT) not in seen
    assert set(said("import os; print(*os.listdir('/'))").split()) <= {
        "bin", "dev", "etc", "lib", "lib64", "packages", "tmp", "usr", "inside_sandbox.py", walls.PYTHON.parts[1]
    }  # fmt: skip


def test_nothing_can_be_written_outside():
    for path in (
        "/x",
        "/usr/x",
        "/etc/x",
        "/dev/x",
        "/packages/x",
        "/inside_sandbox.py",
        "/usr/bin/env",
        str(walls.PYTHON),
    ):
        assert attempt(f"open({path!r}, 'w')") in ("OSError", "PermissionError"), path


def test_no_open_file_of_ours_is_inherited(tmp_path):
    """Also if this process has so many that the sandbox's own have large numbers."""
    (tmp_path / "open").write_text("secret")
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            os.set_inheritable(stack.enter_context((tmp_path / "open").open()).fileno(), True)
        code = "import os\nfor fd in range(3, 5000):\n    try: print(os.fstat(fd).st_size)\n    except OSError: pass"
        assert sorted(said(code).split()) == ["0", "32"]  # the key and the pipe for answers


def test_an_older_bubblewrap_works_too(monkeypatch):
    """0.6, of Ubuntu 22.04, knows no --size. Then a folder in memory has the kernel's limit: half of all memory."""
    walls.around.cache_clear()
    monkeypatch.setattr(walls, "_version", lambda: (0, 6))
    assert said("open('x', 'w').write('1')\nprint(1)") == "1\n"
    assert "--size" not in walls.around(sandbox.DEFAULTS.folder)
    walls.around.cache_clear()


def test_no_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        assert attempt(f"socket.create_connection({tcp.getsockname()!r}, 1)") == "ConnectionRefusedError"
        attempt(f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', {udp.getsockname()!r})")
        udp.settimeout(0.3)
        with pytest.raises(TimeoutError):
            udp.recv(1)
    assert attempt("socket.create_connection(('1.1.1.1', 80), 1)") == "OSError"  # unreachable
    assert attempt("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))") == "OSError"
    assert attempt("socket.getaddrinfo('example.com', 80)") == "gaierror"
    for name in (str(tmp_path / "unix"), "\0abstract-of-this-test"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
            server.listen()
            refused = attempt(f"socket.socket(socket.AF_UNIX).connect({name!r})")
            assert refused in ("FileNotFoundError", "ConnectionRefusedError")


def test_no_rights():
    if os.geteuid() == 0:
        assert attempt("os.setuid(0)") == "PermissionError"
        assert int(said("import os; print(os.getuid())")) in sandbox._UIDS
        assert attempt("os.kill(1, 9)") == attempt("os.kill(os.getppid(), 9)") == "PermissionError"
        assert said("import ctypes; print(ctypes.CDLL(None).ptrace(16, 1, 0, 0))") == "-1\n"
    assert said("import os; print(os.getgroups())") in ("[]\n", "[65534]\n")
    assert said("import ctypes; print(ctypes.CDLL(None).mount(b'a', b'/tmp', b'tmpfs', 0, 0))") == "-1\n"
    assert attempt("os.chroot('/tmp')") == "PermissionError"
    assert attempt("os.kill(-1, 0)") == "ProcessLookupError"  # it sees no other process
    assert attempt(f"os.kill({os.getpid()}, 9)") == "ProcessLookupError"
    assert attempt("open('/dev/tty')") == "FileNotFoundError"


def test_nothing_stays_behind():
    """A daemon in a session of its own, which keeps the pipes open or closes them, ends with the sandbox."""
    mark = f"mark-{os.getpid()}-{time.time_ns()}"
    running = lambda: mark in "".join(_commands())
    code = f"""if True:
        import os, sys, time
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.execv(sys.executable, [sys.executable, '-S', '-c', 'import time; time.sleep(600)', {mark!r}])
            os._exit(0)
        time.sleep(0.3)
    """
    started = time.monotonic()
    assert sandbox.run(code).passed
    assert time.monotonic() - started < 5 and not running()


def _commands():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:
            continue


def test_the_kernel_would_end_it_first():
    """Together, processes may use more memory than there is. Then the kernel ends those with the highest score."""
    mark = f"mark-{os.getpid()}-{time.time_ns()}"
    code = f"import os, sys\nos.execv(sys.executable, ['python', '-S', '-c', 'import time; time.sleep(1)', {mark!r}])"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        run = pool.submit(sandbox.run, code)
        scores = set()
        while not run.done():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if mark in path.read_text(errors="replace"):
                        scores.add(int((path.parent / "oom_score_adj").read_text()))
                except OSError:
                    continue
            time.sleep(0.05)
    assert scores == {1000}


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/usr/bin/python3").exists(), reason="only root can become another user"
)
def test_a_user_without_rights_gets_it_too():
    """Bubblewrap then makes a user namespace. The system's Python runs it, because others can't read root's."""
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
    )
    if version.stdout != b"True\n":
        pytest.skip("needs a system Python of 3.11 or newer")
    place = Path(tempfile.mkdtemp(dir="/var/tmp"))  # the folders of pytest are root's alone
    folder = place / "train" / "align"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent, place):
        path.chmod(0o755)
    for name in ("sandbox.py", "walls.py", "inside_sandbox.py"):
        shutil.copy(ROOT / "train" / "align" / name, folder)
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        from train.align import sandbox
        assert sandbox.run("def f(): return 1", "assert f() == 1").passed, sandbox.why_not()
        assert not sandbox.run("import os; os._exit(0)").passed
        bomb = "import os\\nwhile True:\\n    try: os.fork()\\n    except OSError: pass"
        assert sandbox.run(bomb, limits=sandbox.Limits(seconds=1)).status == "timeout"
        for path in ("/home", "/etc/passwd", "/proc", sys.argv[1]):
            assert not sandbox.run(f"import os; os.stat({path!r})").passed
        assert not sandbox.run("open('/dev/x', 'w')").passed
        print("good")
    """
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, place],
        user=1000,
        group=1000,
        extra_groups=[],
        capture_output=True,
        text=True,
        cwd="/",
    )
    shutil.rmtree(place)
    assert done.stdout == "good\n", done.stderr
