"""The listed programs work, and a missing one is installed or reported; stand-ins replace apt-get."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from tests import system
from train.record import metrics
from train.report import run_report

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.needs("chromium")
def test_chromium_shows_the_report_of_a_run(tmp_path):
    writer = metrics.Writer(tmp_path)
    for step in range(1, 9):
        writer.write(step, {"loss": 9.0 / step, "learning_rate": 0.1})
    writer.close()
    page, picture = run_report.write_report(tmp_path), tmp_path / "page.png"
    # Chromium's sandbox does not work as root, and a container has a small /dev/shm.
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path}/profile", "--window-size=800,600"]
    show = lambda what: subprocess.run([*command, what, page.as_uri()], check=True, capture_output=True, timeout=120)
    assert b"</svg>" in show("--dump-dom").stdout
    show(f"--screenshot={picture}")
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[:2] == (600, 800)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10  # the picture has text and curves


@pytest.mark.needs("bubblewrap")
def test_bubblewrap_keeps_a_program_in(tmp_path):
    box = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "sh", "-c"]
    assert subprocess.run([*box, "test -e /usr"]).returncode == 0
    assert subprocess.run([*box, f"echo > {tmp_path}/file"], capture_output=True).returncode != 0
    assert not (tmp_path / "file").exists()


@pytest.mark.needs("java")
def test_java_answers():
    done = subprocess.run(["java", "-version"], check=True, capture_output=True, text=True)
    assert "version" in done.stderr


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a list with one missing program, `wanted`, and an apt-get that records its arguments and runs `then`."""

    def make(then: str, user: int = 0):
        programs, calls = tmp_path / "bin", tmp_path / "calls"
        programs.mkdir()
        (programs / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{then}\n')
        (programs / "apt-get").chmod(0o755)
        (tmp_path / "list").write_text("# why\nwanted | package other | wanted --version\n\nsh | dash | true\n")
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setattr(os, "geteuid", lambda: user)
        monkeypatch.setattr(system, "LIST", tmp_path / "list")
        system.missing.cache_clear()
        return programs, lambda: calls.read_text().splitlines() if calls.exists() else []

    yield make
    system.missing.cache_clear()


APPEARS = "case \"$*\" in *install*) printf '#!/bin/sh\\n' > $(dirname $0)/wanted; chmod +x $(dirname $0)/wanted;; esac"


def test_root_installs_what_is_missing_once(machine, capfd):
    _, calls = machine(APPEARS)
    assert system.main() == 0
    update, install = calls()
    assert update.endswith(" update") and install.endswith("--no-install-recommends --yes package other")
    assert "installing wanted" in capfd.readouterr().out
    assert system.main() == 0 and len(calls()) == 2
    assert capfd.readouterr() == ("", "")
    assert system.lack("wanted") is None


@pytest.mark.parametrize(
    "then", ["echo Could not resolve host >&2; exit 100", 'case "$*" in *install*) exit 100;; esac', ""]
)
def test_without_a_network_tests_are_skipped_but_not_in_ci(then, machine, capfd, monkeypatch):
    machine(then)
    monkeypatch.setenv("TESTS_SKIP_NOTHING", "0")
    assert system.main() == 0
    said = capfd.readouterr().err
    assert "tests that need them are skipped: wanted" in said
    assert "sudo apt-get install --no-install-recommends --yes package other\n" in said
    assert ("Could not resolve host" in said) == ("resolve" in then)
    monkeypatch.setenv("TESTS_SKIP_NOTHING", "1")
    assert system.main() == 1
    assert capfd.readouterr().err.startswith("error: tests need wanted")


def test_who_is_not_root_is_told_the_command(machine, capfd, monkeypatch):
    _, calls = machine(APPEARS, user=1000)
    monkeypatch.setenv("TESTS_SKIP_NOTHING", "0")
    assert system.main() == 0 and not calls()
    assert "sudo apt-get install --no-install-recommends --yes package other\n" in capfd.readouterr().err
    assert system.lack("wanted").startswith("needs wanted") and system.lack("sh") is None
    with pytest.raises(KeyError):
        system.lack("unknown")


@pytest.mark.parametrize(("strict", "outcome"), [("", "1 passed, 1 skipped"), ("1", "1 passed, 1 error")])
def test_the_marker_skips_by_name_and_fails_in_ci(strict, outcome, tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.needs('gone')\ndef test_gone(): pass\n"
        "@pytest.mark.needs('sh')\ndef test_there(): pass\n"
    )
    (tmp_path / "list").write_text("gone | package | false\nsh | dash | true\n")
    (tmp_path / "conftest.py").write_text(
        f"import pathlib\nfrom tests import system\nsystem.LIST = pathlib.Path({str(tmp_path / 'list')!r})\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.needs", "-c", str(ROOT / "pyproject.toml")]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"TESTS_SKIP_NOTHING": strict}
    )
    assert outcome in done.stdout, done.stdout
    if strict:
        assert "needs gone, which is missing" in done.stdout and "--yes package" in done.stdout
    else:
        assert "not run, because gone is missing: test_it.py::test_gone" in done.stdout
