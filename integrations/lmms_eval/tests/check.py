"""Runs lmms-eval offline with `omnivinci_server` on small data sets, and compares scores with `omnivinci evaluate`'s.

`make check-lmms-eval` runs it, in lmms-eval's environment; the first argument is the Python of omnivinci-jax.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import Asked, Benchmark, make_all, read_items

REPOSITORY = Path(__file__).parents[3]
TASKS = REPOSITORY / "integrations" / "lmms_eval" / "omnivinci_lmms_eval" / "tasks"
_TOKENS = 8  # of an answer

_RANDOM_MODEL = """
import sys
from pathlib import Path
from omnivinci_jax import model_dir
from tests.generate.conftest import tiny_assistant
assistant = tiny_assistant()
model_dir.save(Path(sys.argv[1]), assistant.model.config, assistant.params, assistant.processor.tokenizer)
"""
_COMMANDS = """
import json, sys
from omnivinci_jax import cli
for command in json.load(sys.stdin):
    if cli.main(command): sys.exit(f"omnivinci {' '.join(command)} failed")
"""


def main(python: str) -> None:
    """Runs everything in a temporary folder; raises AssertionError where something differs."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        omnivinci(python, ["av_world", "--out", str(work / "av_world"), "--train_clips", "1", "--val_clips", "1",
                           "--held_out_clips", "8"])  # fmt: skip
        benchmarks = make_all(read_items(work / "av_world"), work / "data", work / "hf")
        subprocess.run([python, "-c", _RANDOM_MODEL, str(work / "model")], cwd=REPOSITORY, check=True)

        print("\nlmms-eval asks a random model, which omnivinci evaluate asks too", flush=True)
        with serving(python, work / "model") as address:
            asked, _ = lmms_eval(work, benchmarks, f"base_url={address},answers=answers.jsonl")
        compare_answers(python, work, benchmarks, asked)

        print("\nlmms-eval and omnivinci evaluate score the same answers", flush=True)
        said = write_answers(work / "data" / "answers.jsonl", benchmarks)
        # The server is gone, and the first question has no answer: that stops the run.
        arguments = f"base_url={address},answers=answers.jsonl,tries=1,max_failures=1"
        stopped = run_lmms_eval(work, benchmarks[:1], arguments, work / "stopped")
        assert f"{address}/v1/chat/completions: [Errno 111] Connection refused (1 tries)" in stopped, stopped
        assert not list((work / "stopped").rglob("*_results.json"))
        # Its video is gone, too: it fails without being asked, and counts in no score. The others are not asked again.
        (work / "hf" / "WorldSense" / "videos" / "0.mp4").unlink()
        logged, results = lmms_eval(work, benchmarks, arguments)
        assert {name: [line["filtered_resps"] for line in lines] for name, lines in logged.items()} == said
        compare_scores(python, work, benchmarks, asked, said, results)


def omnivinci(python: str, *commands: list[str]) -> None:
    """Runs commands of omnivinci in one process."""
    subprocess.run([python, "-c", _COMMANDS], input=json.dumps(commands), text=True, cwd=REPOSITORY, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


class serving:
    """`omnivinci serve`, as a context that gives its address."""

    def __init__(self, python: str, model: Path):
        command = [python, "-m", "omnivinci_jax.cli", "serve", "--model", str(model), "--port", "0"]
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().split()[-1]

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


def run_lmms_eval(work: Path, benchmarks: list[Benchmark], arguments: str, out: Path) -> str:
    """Runs lmms-eval on benchmarks, offline; returns what it printed. It exits with 0 after an error, too."""
    # The data sets are folders of the working directory, by the names that they have on the hub.
    environment = os.environ | {"HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-m", "lmms_eval", "--model", "omnivinci_server", "--model_args", arguments,
               "--include_path", str(TASKS), "--tasks", ",".join(benchmark.task for benchmark in benchmarks),
               "--gen_kwargs", f"max_new_tokens={_TOKENS}", "--log_samples", "--output_path", str(out)]  # fmt: skip
    done = subprocess.run(command, cwd=work / "data", env=environment, text=True, capture_output=True)
    return done.stdout + done.stderr


def lmms_eval(work: Path, benchmarks: list[Benchmark], arguments: str) -> tuple[dict[str, list], dict[str, dict]]:
    """Runs lmms-eval and prints its table; returns the samples and the scores of each task."""
    out = Path(tempfile.mkdtemp(dir=work))
    printed = run_lmms_eval(work, benchmarks, arguments, out)
    found = list(out.rglob("*_results.json"))
    if not found:
        sys.exit(f"lmms-eval failed:\n{printed[-6000:]}")
    print("\n".join(line for line in printed.splitlines() if line.startswith("|") or "failed: " in line))
    samples = {}
    for benchmark in benchmarks:
        [path] = out.rglob(f"*_samples_{benchmark.task}.jsonl")
        lines = map(json.loads, path.read_text().splitlines())
        samples[benchmark.task] = sorted(lines, key=lambda line: line["doc_id"])
    return samples, json.loads(found[0].read_text())["results"]


def compare_answers(python: str, work: Path, benchmarks: list[Benchmark], asked: dict[str, list]) -> None:
    """Asks the model the same without lmms-eval and the server: every answer must be the same."""
    data = work / "all.jsonl"
    records = [
        record(benchmark.task, line["doc_id"], item, line["input"])
        for benchmark in benchmarks
        for item, line in zip(benchmark.asked, asked[benchmark.task], strict=True)
    ]
    write_lines(data, records)
    omnivinci(python, ["evaluate", "--model", str(work / "model"), "--data", str(data), "--metric", "exact", "--out",
                       str(work / "all.json"), "--max_new_tokens", str(_TOKENS)])  # fmt: skip
    samples = map(json.loads, (work / "all.samples.jsonl").read_text().splitlines())
    alone = {sample["id"]: sample["answer"].split("\n\n")[0].strip() for sample in samples}
    through = {
        f"{task} {line['doc_id']}": line["filtered_resps"].strip() for task, lines in asked.items() for line in lines
    }
    different = [f"{name}: {through[name]!r}, not {alone[name]!r}" for name in alone if alone[name] != through[name]]
    assert through.keys() == alone.keys() and not different, "\n".join(different)
    print(f"{len(alone)} answers, {len(set(alone.values()))} of them different: all the same without lmms-eval")


def record(task: str, document: int, item: Asked, prompt: str) -> dict[str, Any]:
    """Returns a question as a record of omnivinci's data file."""
    kinds = {".mp4": "video", ".wav": "audio", ".png": "image"}
    media = [{"type": kinds[path.suffix], kinds[path.suffix]: str(path)} for path in item.media]
    right = {"answers": item.right} if isinstance(item.right, list) else {"answer": item.right}
    content = [*media, {"type": "text", "text": prompt}]
    options = {"options": item.options} if item.options else {}
    name = f"{task} {document}"
    return {"id": name, "messages": [{"role": "user", "content": content}], "kind": task, **options, **right}


def write_answers(path: Path, benchmarks: list[Benchmark]) -> dict[str, list[str]]:
    """Replaces the answers in the plugin's file by crafted ones, but takes out the first; returns those."""
    draw = random.Random(0)
    said = {benchmark.task: [craft(item, draw) for item in benchmark.asked] for benchmark in benchmarks}
    lines = []
    for line in map(json.loads, path.read_text().splitlines()):
        task, place = line["question"].split(", ")
        document = int(place.split()[-1])
        if (task, document) != (benchmarks[0].task, 0):
            lines.append({**line, "answer": said[task][document]})
    write_lines(path, lines)
    del said[benchmarks[0].task][0]
    return said


def craft(item: Asked, draw: random.Random) -> str:
    """Returns an answer of a form that all scorers read, right or wrong."""
    if item.options:
        letters = "ABCDEFGH"[: len(item.options)]
        letter = str(item.right) if draw.random() < 0.6 else draw.choice(letters)
        text = item.options[letters.index(letter)]
        return draw.choice(["{0}", "{0}.", "({0})", "{0}. {1}", "The answer is {0}."]).format(letter, text)
    if isinstance(item.right, list):
        return draw.choice([item.right[0], item.right[-1].upper(), item.right[0][:-1], "none"])
    try:
        return f"{float(item.right) * draw.choice([1.04, 0.96, 1.06]):.4f}"
    except ValueError:
        words = item.right.lower().split()
    if draw.random() < 0.7:
        words[draw.randrange(len(words))] = draw.choice(["oh", "the the", ""])
    return " ".join(word for word in words if word)


def compare_scores(
    python: str,
    work: Path,
    benchmarks: list[Benchmark],
    asked: dict[str, list],
    said: dict[str, list[str]],
    results: dict[str, dict],
) -> None:
    """Scores the answers with `omnivinci evaluate`, and prints both scores of each benchmark."""
    commands = []
    for benchmark in benchmarks:
        task = benchmark.task
        documents = range(len(benchmark.asked) - len(said[task]), len(benchmark.asked))
        write_lines(work / f"{task}.jsonl", [
            record(task, line["doc_id"], item, line["input"])
            for item, line in zip(benchmark.asked, asked[task], strict=True)
        ])  # fmt: skip
        given = zip(documents, said[task], strict=True)
        lines = [{"id": f"{task} {document}", "answer": answer} for document, answer in given]
        write_lines(work / f"{task}.said.jsonl", lines)
        commands.append(["evaluate", "--data", str(work / f"{task}.jsonl"), "--out", str(work / f"{task}.json"),
                         "--answers", str(work / f"{task}.said.jsonl"), "--max_skipped", "0.01", "--metric",
                         *benchmark.metric])  # fmt: skip
    omnivinci(python, *commands)
    print(f"\n| {'task':25} | lmms-eval | omnivinci evaluate | answers | failed |\n|---|---|---|---|---|")
    different = []
    for benchmark in benchmarks:
        theirs = results[benchmark.task][f"{benchmark.score},none"] * benchmark.unit
        ours = json.loads((work / f"{benchmark.task}.json").read_text())
        value, count = ours["overall"]["value"], ours["overall"]["count"]
        if benchmark.task == "ami_test":  # lmms-eval's is the mean of the utterances' rates, not the corpus's rate
            samples = map(json.loads, (work / "ami_test.samples.jsonl").read_text().splitlines())
            value = sum(sample["score"] for sample in samples) / count
        print(f"| {benchmark.task:25} | {theirs:9.4f} | {value:18.4f} | {count:7} | {ours['failed']:6} |")
        if abs(theirs - value) > 2e-5 * max(1, abs(value)):  # lmms-eval rounds to 5 digits
            different.append(benchmark.task)
    assert not different, f"different scores: {', '.join(different)}"
    print(f"{len(benchmarks)} scores: all the same")


def write_lines(path: Path, records: list[dict]) -> None:
    """Writes JSONL."""
    path.write_text("".join(json.dumps(line) + "\n" for line in records))


if __name__ == "__main__":
    main(sys.argv[1])
