"""TPU VMs: the requests to gcloud, and a run from start to end on four simulated hosts of two slices."""

import sys
import time

from tests.launch.pods.standins import ARGUMENTS, PLACE, RECORDER, TPU_VM, TRAINING, given


def test_tpus_are_requested(tools):
    wanted = ["--type=v5litepod-16", "--version=image"]
    for more in ([], ["--queued"], ["--slices=3", "--spot"]):
        assert tools.run(TPU_VM, "create", *PLACE, *wanted, *more).returncode == 0
    plain, queued, slices = tools.calls()
    same = {"zone": "us-central1-a", "accelerator-type": "v5litepod-16"}
    assert plain[1:6] == ["compute", "tpus", "tpu-vm", "create", "pod"]
    assert given(plain) == same | {"version": "image"}
    assert queued[1:6] == slices[1:6] == ["compute", "tpus", "queued-resources", "create", "pod"]
    assert given(queued) == same | {"runtime-version": "image", "node-id": "pod"}
    many = {"runtime-version": "image", "node-count": "3", "node-prefix": "pod", "spot": ""}
    assert given(slices) == same | many


# Simulates ssh and scp of gcloud for two slices of two hosts, each with its own home directory.
GCLOUD = """
verb=$4 archive=$5 workers='' slices='' command=''
for word; do
  case $word in
    --worker=all) workers='0 1' ;;
    --worker=*) workers=${word#*=} ;;
    --node=all) slices='0 1' ;;
    --node=*) slices=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
for SLICE in $slices; do
  for WORKER in $workers; do
    export SLICE WORKER HOME=$HOSTS/$SLICE-$WORKER HOSTNAME=host-$SLICE-$WORKER
    cd "$HOME"
    if [ "$verb" = scp ]; then cp "$archive" meshlm.tar.gz; else bash -c "$command" || exit; fi
  done
done
"""
CURL = """
case ${!#} in
  */agent-worker-number) echo "$WORKER" ;;
  */worker-network-endpoints) echo host-a,host-b ;;
  */tpu-env) printf "ZONE: 'z'\\nMEGASCALE_NUM_SLICES: '2'\\nMEGASCALE_SLICE_ID: '%s'\\n" "$SLICE" ;;
esac
"""


def test_a_run_on_two_slices(tools, tmp_path):
    tools.program("gcloud", GCLOUD)
    tools.program("curl", CURL)
    for name in ("tar", "rm"):
        (tools.bin / name).unlink()
    hosts = [tmp_path / "hosts" / f"{slice}-{worker}" for slice in (0, 1) for worker in (0, 1)]
    for host in hosts:
        python = host / "meshlm" / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'{RECORDER}[ "$2" = pip ] || exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (host / "meshlm" / "of_an_older_checkout.py").touch()
        (host / "meshlm" / "runs").mkdir()
    launcher = lambda verb, *more: tools.run(
        TPU_VM, verb, *PLACE, "--slices=2", *more, HOSTS=str(tmp_path / "hosts"), TMPDIR=str(tmp_path)
    )
    assert (copied := launcher("copy")).returncode == 0, copied.stderr
    assert not list(tmp_path.glob("*.tar.gz"))
    for host in hosts:
        there = {path.name for path in (host / "meshlm").iterdir()}
        assert {"model", "launch", "README.md", "requirements.txt", ".venv", "runs"} <= there
        assert not there & {".git", "of_an_older_checkout.py"}
    installed = [call for call in tools.calls() if call[:3] == ["python", "-m", "pip"] and "jax[tpu]" in call]
    assert len(installed) == 4

    assert (started := launcher("start", "--", "python", "-c", TRAINING, *ARGUMENTS)).returncode == 0, started.stderr
    logs = [host / "meshlm_run" / "log" for host in hosts]
    try:
        again = launcher("start", "--", "true")
        assert again.returncode == 2 and "error: host-0-0: a run is still running" in again.stderr
        until = time.time() + 20
        while time.time() < until and not all(str(ARGUMENTS) in log.read_text() for log in logs):
            time.sleep(0.05)
        assert launcher("status").stdout.count("running as process") == 4
    finally:
        stopped = launcher("stop")
    assert stopped.returncode == 0, stopped.stderr
    for i, (host, log) in enumerate(zip(hosts, logs, strict=True)):
        prefix = f"[{i}/4 host-{host.name}] "
        assert log.read_text().splitlines()[-2:] == [f"{prefix}['{host.name}', 'meshlm'] {ARGUMENTS}", f"{prefix}saved"]
    assert launcher("status").stdout.count("nothing is running") == 4
