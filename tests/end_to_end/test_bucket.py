"""Runs on gs://: the real command, gcsfs and TensorStore against a GCS emulator."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from subprocess import PIPE
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from tests.end_to_end.commands import command, losses, run, train_command, wait_until
from tests.tiny import REPOSITORY

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

# The emulator omits an object's generation, which TensorStore needs to write a changed object.
SERVER = """
import sys
from gcp_storage_emulator.handlers import objects

download = objects.download

def with_version(request, response, storage, *args, **kwargs):
    download(request, response, storage, *args, **kwargs)
    if response.status in (200, 206):
        where = request.params["bucket_name"], request.params["object_id"]
        response["X-Goog-Generation"] = storage.get_file_obj(*where)["generation"]

objects.download = with_version

from gcp_storage_emulator.server import create_server
create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""

# Takes over the killed run's directory and keeps it until the test closes its input.
OWNER = """
import sys
from etils import epath
from omnivinci_jax.train.claim import claim_workdir

with claim_workdir(epath.Path("gs://bucket/runs/a")):
    print("taken over", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bucket(environment) -> Iterator[dict[str, str]]:
    """The environment of a program that uses a local GCS emulator with gs://bucket."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], **quiet)
    while socket.socket().connect_ex(("localhost", port)):
        assert server.poll() is None
        time.sleep(0.1)
    address = f"http://localhost:{port}"
    yield environment | {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "none",
    }
    server.kill()


def in_bucket(environment: dict[str, str], program: str) -> object:
    """Evaluates an expression with `root` = gs://bucket in a program, and returns its JSON value."""
    program = f"import json; from etils import epath; root = epath.Path('gs://bucket'); print(json.dumps({program}))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def is_in_bucket(environment: dict[str, str], name: str) -> bool:
    address = f"{environment['STORAGE_EMULATOR_HOST']}/storage/v1/b/bucket/o/{quote(name, safe='')}"
    try:
        return urlopen(address).status == 200
    except HTTPError:
        return False


def test_a_run_in_a_bucket_equals_a_run_on_disk(bucket, environment, av_world, tmp_path):
    """Shards, cache and work directory: killed, taken over, refused, resumed, and its model evaluated."""
    short = ("--config.data.held_out=",)
    on_disk = run(train_command(av_world, tmp_path / "run", *short), environment)
    assert on_disk.returncode == 0, on_disk.stderr[-3000:]

    data = "gs://bucket/data/train"
    done = run(command("shard", av_world / "train.jsonl", "--out", data, "--per_shard=20", "--workers=1"), bucket)
    assert done.returncode == 0, done.stderr[-3000:]
    remote = (f"--config.data.train={data}", "--config.data.cache=gs://bucket/cache", *short)
    arguments = train_command(av_world, "gs://bucket/runs/a", *remote)
    process = subprocess.Popen(
        arguments, env=bucket, cwd=REPOSITORY, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    wait_until(process, lambda: is_in_bucket(bucket, "runs/a/checkpoints/3/commit_success.txt"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], env=bucket, cwd=REPOSITORY, stdin=PIPE, stdout=PIPE, text=True
    )
    assert owner.stdout.readline() == "taken over\n"
    refused = run(arguments, bucket)
    assert refused.returncode == 2 and f"used by another run (process {owner.pid} on " in refused.stderr, refused.stderr
    owner.communicate()  # closes its input, which releases the directory
    done = run(arguments, bucket)
    assert done.returncode == 0 and re.search(r"resumed at step [369]\b", done.stderr), done.stderr[-3000:]
    files = in_bucket(bucket, "sorted(path.name for path in (root / 'runs/a').iterdir())")
    assert {"checkpoints", "config.json", "loss.png", "metrics.jsonl", "model", "report.md", "tensorboard"} <= {*files}
    assert "lock" not in files
    (tmp_path / "metrics.jsonl").write_text(in_bucket(bucket, "(root / 'runs/a/metrics.jsonl').read_text()"))
    assert losses(tmp_path) == losses(tmp_path / "run")

    results = []
    for model in (tmp_path / "run" / "model", "gs://bucket/runs/a/model"):
        out = tmp_path / "results.json"
        done = run(command("evaluate", "--model", model, "--data", av_world / "val.jsonl", "--out", out), bucket)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(out.read_text()) | {"seconds": 0})
    assert results[0] == results[1]


def test_missing_data_in_the_bucket_gives_one_line(bucket, av_world, tmp_path):
    missing = train_command(av_world, tmp_path / "run", "--config.data.train=gs://bucket/nothing")
    done = run(missing, bucket)
    assert done.returncode == 2 and "gs://bucket/nothing: there is no shards.json" in done.stderr
    assert "Traceback" not in done.stderr
