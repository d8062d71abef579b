"""`omnivinci serve` as a process: it answers, finishes what runs on SIGTERM, and refuses bad flags in one line."""

import signal
import subprocess
import sys

import httpx
import pytest

from omnivinci_jax import cli, model_dir
from tests.serve.conftest import client_of


def test_sigterm_finishes_what_runs(assistant, tmp_path):
    model_dir.save(tmp_path / "tiny", assistant.model.config, assistant.params, assistant.processor.tokenizer)
    command = [sys.executable, "-m", "omnivinci_jax.cli", "serve", "--model", str(tmp_path / "tiny"), "--port", "0"]
    command += ["--rows", "2", "--max_length", "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith("omnivinci serve: http://127.0.0.1:"), line + process.stderr.read()
        address = line.split()[-1]
        question = [{"role": "user", "content": "Hello"}]
        stream = client_of(address).chat.completions.create(
            model="tiny", messages=question, stream=True, max_tokens=400
        )
        chunks = [next(stream)]
        process.send_signal(signal.SIGTERM)
        chunks += list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == assistant.generate("Hello", max_new_tokens=400).text
        assert chunks[-1].choices[0].finish_reason
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
        assert process.wait(60) == 0 and process.stderr.read() == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--media_dir", "missing"), "--media_dir missing: is not a folder"),
        (("--port", "70000"), "--port 70000: a port is 0 to 65535"),
        (("--host", "192.0.2.1"), "--host 192.0.2.1 --port 8000: Cannot assign requested address"),
    ],
)
def test_bad_flags(tmp_path, capsys, flags, message):
    assert cli.main(["serve", "--model", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
