"""The model `omnivinci_server` of lmms-eval."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from omnivinci_lmms_eval.answers import AnswerFile, key_of
from omnivinci_lmms_eval.client import Client, Failed
from omnivinci_lmms_eval.messages import message
from omnivinci_lmms_eval.sampling import sampling

_NO_DOCUMENT = -1  # lmms-eval scores the documents that have requests; a failed request gives up its own


class OmniVinciServer(lmms):
    """Asks `omnivinci serve`.

    Args (`--model_args`):
        base_url: of the server.
        answers: JSONL file of answers and failures; the same command then asks only what has no answer.
        concurrent: questions at once.
        max_failures: questions that may fail; one more stops the run. Those that failed count in no score.
        by_path: send files as file:// URLs, for a server on this machine with --media_dir.
        use_audio_in_video: whether the sound of videos is heard.
        text_only: also ask questions whose task finds no media, instead of counting them as failures.
        timeout, tries: see `Client`.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        answers: str = "",
        concurrent: int = 8,
        max_failures: int = 0,
        by_path: bool = False,
        use_audio_in_video: bool = True,
        text_only: bool = False,
        timeout: float = 600,
        tries: int = 6,
        **unused: Any,
    ):
        super().__init__()
        if unknown := set(unused) - {"batch_size", "max_batch_size", "device"}:  # lmms-eval gives these to all models
            raise ValueError(f"omnivinci_server has no argument {', '.join(sorted(unknown))}")
        self._client, self._answers = Client(base_url, timeout, tries), AnswerFile(answers)
        self._concurrent, self._max_failures, self._by_path = concurrent, max_failures, by_path
        self._text_only = text_only
        self._settings = {"mm_processor_kwargs": {"use_audio_in_video": bool(use_audio_in_video)}}
        self._data = threading.Lock()  # data sets are read by one thread at a time

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns the answers, concurrently asked. Those that failed are "", and lmms-eval scores the others.

        Raises:
            RuntimeError: more than `max_failures` questions failed.
            ServerDown: the server is gone.
        """
        answers, failures, seen = [""] * len(requests), [], Counter()
        with ThreadPoolExecutor(self._concurrent) as pool:
            jobs = {}
            for index, request in enumerate(requests):
                text, settings, _, document, task, split = request.args
                question = (task, split, document, text, settings, self._settings)
                seen[key_of(*question)] += 1  # `repeats`
                jobs[pool.submit(self._answer, request, key_of(*question, seen[key_of(*question)]))] = index
            try:
                for job in tqdm(as_completed(jobs), "omnivinci_server", len(jobs), unit=" questions"):
                    request = requests[jobs[job]]
                    try:
                        answers[jobs[job]] = job.result()
                    except (Failed, ValueError) as error:
                        failures.append(f"{_where(request)}: {error}")
                        logger.error(f"failed: {failures[-1]}")
                        if len(failures) > self._max_failures:
                            raise RuntimeError(
                                f"{len(failures)} of {len(requests)} questions failed, more than max_failures = "
                                f"{self._max_failures} allows; the last: {failures[-1]}"
                            ) from None
                        request.doc_id = _NO_DOCUMENT
            finally:
                pool.shutdown(cancel_futures=True)
        logger.warning(f"failures: {len(failures)} of {len(requests)} questions, counted in no score")
        return answers

    def _answer(self, request: Instance, key: str) -> str:
        answer = self._answers.get(key)
        if answer is not None:
            return answer
        try:
            asked = {"messages": [self._message(request)], **self._settings, **sampling(request.args[1])}
            answer = self._client.ask(asked)
        except (Failed, ValueError) as error:
            self._answers.add(key, _where(request), error=str(error))
            raise
        self._answers.add(key, _where(request), answer=answer)
        return answer

    def _message(self, request: Instance) -> dict[str, Any]:
        text, _, doc_to_visual, document, task, split = request.args
        try:
            with self._data:
                media = doc_to_visual(self.task_dict[task][split][document])
            if media or self._text_only:
                return message(text, media, self._by_path)
        except (Exception, SystemExit) as error:  # Video-MME's task exits where a video is missing
            raise ValueError(f"its media cannot be read: {error!r}") from None
        # WorldSense's and AMI's print an error and go on without.
        raise ValueError("the task found no media: give text_only=True if it has none")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not here: `omnivinci evaluate --metric likelihood` scores options."""
        raise NotImplementedError("omnivinci_server generates: take a task of generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not here."""
        raise NotImplementedError("omnivinci_server answers one turn: take a task of generate_until")


def _where(request: Instance) -> str:
    _, _, _, document, task, split = request.args
    return f"{task}, {split} {document}"
