"""launch/gke.sh: the manifest that it shows, and sends."""

import pytest
import yaml
from stubs import MAIN, SETTINGS, assert_one_line, make_fake

fake = pytest.fixture(make_fake)


def jobset(fake, *args, **env):
    result = fake.run("gke.sh", "show", *args, **{**SETTINGS, **env})
    assert result.returncode == 0, result.stderr
    assert "${" not in result.stdout and not fake.calls()
    return yaml.safe_load(result.stdout)["spec"]


@pytest.mark.parametrize(
    "topology, chips, hosts", [("4x4", 4, 4), ("2x2x4", 4, 4), ("2x4", 8, 1)]
)
def test_gke_has_a_pod_for_each_host(fake, topology, chips, hosts):
    spec = jobset(fake, *MAIN, TOPOLOGY=topology, CHIPS=chips)
    (job,) = spec["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_gke_runs_what_it_is_told_where_it_is_kept(fake):
    odd = ("--name", 'a "b" \\ c', "${NAME}&")
    spec = jobset(fake, *MAIN, *odd[:2], GRACE=33, MAX_RESTARTS=3)
    pod = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", *MAIN, *odd[:2]]
    (mount,) = container["volumeMounts"]
    assert MAIN[-1].startswith(mount["mountPath"])
    (volume,) = pod["volumes"]
    assert volume["name"] == mount["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == "runs"
    assert pod["terminationGracePeriodSeconds"] == 33
    assert spec["failurePolicy"]["maxRestarts"] == 3


def test_gke_needs_no_volume_for_a_run_in_a_bucket(fake):
    main = *MAIN[:-1], "gs://bucket/runs/a"
    spec = jobset(fake, *main, CLAIM=None)
    pod = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", *main]
    assert "volumes" not in pod and "volumeMounts" not in container


def test_gke_fails_at_once_on_what_would_come_again(fake):
    spec = jobset(fake, *MAIN)
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (policy,) = job["podFailurePolicy"]["rules"]
    assert policy["action"] == "FailJob" and policy["onExitCodes"]["values"] == [1, 2]
    pod = job["template"]["spec"]
    assert policy["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0


def test_gke_sends_what_it_shows(fake):
    shown = fake.run("gke.sh", "show", *MAIN, **SETTINGS).stdout
    assert fake.run("gke.sh", "run", *MAIN, **SETTINGS).returncode == 0
    assert fake.calls("kubectl create") and (fake.root / "sent").read_text() == shown
    for verb in ("logs", "status", "delete"):
        assert fake.run("gke.sh", verb, NAME="mine").returncode == 0
    assert fake.calls("logs", "jobset-name=mine") and fake.calls("get jobset mine")
    assert fake.calls("delete jobset mine")


@pytest.mark.parametrize(
    "change, word",
    [
        ({"IMAGE": None}, "IMAGE"),
        ({"CLAIM": None}, "CLAIM"),
        ({"TOPOLOGY": "16"}, "TOPOLOGY"),
        ({"TOPOLOGY": "2x3", "CHIPS": 4}, "CHIPS"),
        ({"RUNS": "/elsewhere"}, "--workdir /elsewhere"),
        ({"ACCELERATOR": "v5litepod-16"}, "ACCELERATOR"),
    ],
)
def test_gke_mistakes(fake, change, word):
    assert_one_line(fake.run("gke.sh", "run", *MAIN, **{**SETTINGS, **change}), word)
    assert not fake.calls()
