"""JobSets: the manifests that kubectl gets, and the command that a pod runs."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.launch.pods.standins import ARGUMENTS, H100, IMAGE, JOBSET, ROOT, V5E


def manifest(tools, *arguments):
    """Returns (kind -> object that kubectl gets, the words of the call)."""
    done = tools.run(JOBSET, "start", *IMAGE, *arguments)
    assert done.returncode == 0, done.stderr
    *call, text = tools.calls()[-1]
    assert not re.search(r"@\w+@", text.replace('@name@"', "")), "a placeholder is not filled in"
    return {found["kind"]: found for found in yaml.safe_load_all(text)}, call


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"), [("4x4", 4, 4), ("2x4", 8, 1), ("16x16", 4, 64), ("4x4x8", 4, 32)]
)
def test_a_job_set_of_tpus(topology, chips, hosts, tools):
    wanted = ["--accelerator=tpu-v5p-slice", f"--topology={topology}", f"--chips={chips}", "--slices=3"]
    objects, _ = manifest(tools, *wanted, "--", "true")
    [slices] = objects["JobSet"]["spec"]["replicatedJobs"]
    assert slices["replicas"] == 3
    spec = slices["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert {volume["name"] for volume in pod["volumes"]} == {v["name"] for v in pod["containers"][0]["volumeMounts"]}


def test_pods_with_gpus_may_ask_for_the_other_pods(tools):
    objects, call = manifest(tools, *H100, "--namespace=mine", "--", "true")
    assert call == ["kubectl", "--namespace=mine", "apply", "--filename=-"]
    [nodes] = objects["JobSet"]["spec"]["replicatedJobs"]
    spec = nodes["template"]["spec"]
    assert (nodes["replicas"], spec["parallelism"], spec["completions"]) == (1, 2, 2)
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    account = pod["serviceAccountName"]
    assert account == objects["ServiceAccount"]["metadata"]["name"] == objects["RoleBinding"]["subjects"][0]["name"]
    assert objects["RoleBinding"]["roleRef"]["name"] == objects["Role"]["metadata"]["name"]
    readable = {(rule["apiGroups"][0], what) for rule in objects["Role"]["rules"] for what in rule["resources"]}
    assert readable == {("", "pods"), ("batch", "jobs")}


@pytest.mark.parametrize("kind", [V5E, H100], ids=["tpu", "gpu"])
def test_a_pod_runs_the_command(kind, tools):
    objects, _ = manifest(tools, *kind, "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *ARGUMENTS)
    [container] = objects["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]} | {"JOB_COMPLETION_INDEX": "1"}
    # Kubernetes expands $(NAME), and turns $$ into $.
    command = [word.replace("$$", "$") for word in container["command"]]
    assert not any(re.search(r"(?<!\$)\$\(", word) for word in container["command"])
    done = subprocess.run(command, env=tools.environment | variables, capture_output=True, text=True, cwd=ROOT)
    who = "1/2" if kind is H100 else "0/1"
    assert (done.returncode, done.stdout) == (0, f"[{who} here] {ARGUMENTS}\n")
