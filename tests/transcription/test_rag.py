"""ASR RAG: the paper's prompt, decisions by WER, control tokens, training data, and the control flow."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnivinci_jax import cli, model_dir
from omnivinci_jax.data.processor import Processor
from omnivinci_jax.data.sources import open_records
from omnivinci_jax.errors import UserError
from omnivinci_jax.evaluation.metrics import make_metric
from omnivinci_jax.generate.answers import Answer
from omnivinci_jax.generate.assistant import Assistant
from omnivinci_jax.models.omnivinci import OmniVinci
from omnivinci_jax.sequence.chat import ACCEPT, INTEGRATE, Conversation, Media, Message
from omnivinci_jax.sequence.tokenizer import Tokenizer
from omnivinci_jax.transcription import command
from omnivinci_jax.transcription.control_tokens import add_control_tokens
from omnivinci_jax.transcription.correction import Hypotheses, ask_correction, choose_text, decide
from tests.tiny import random_params, tiny_config, tiny_tokenizer

SOUND = Media("sound", "a.wav")
PROMPT = """Task: Perform reference-augmented correction for a given speech input.
Objective: Evaluate the quality of an internally generated hypothesis against external candidates.
First, select a generation strategy by producing a control token. Then, generate the final,
corrected text.
- If the internal hypothesis is deemed superior and well-aligned with the audio, select <accept_internal>.
- If the external candidates provide necessary corrections, select <integrate_reference>.
--
Acoustic Evidence: [AUDIO]
External Candidate Transcriptions:
1. one
2. two
3. three
4. four
5. five
Internal Hypothesis:
two of us
--
Output:"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model with control tokens."""
    config = tiny_config()
    plain, out = (tmp_path_factory.mktemp("models") / name for name in ("plain", "out"))
    model_dir.save(plain, config, random_params(config), tiny_tokenizer())
    assert cli.main(["add-control-tokens", "--model", str(plain), "--out", str(out)]) == 0
    return out


def test_the_prompt_is_the_papers():
    content = ask_correction(SOUND, "two of us", ["one", "two", "three", "four", "five"]).messages[0].content
    assert content[1] == SOUND
    assert "".join(item if isinstance(item, str) else "[AUDIO]" for item in content) == PROMPT


def test_decisions_are_the_papers():
    wer = make_metric("wer")
    right = "the cat sat on the mat here and now again"  # ten words
    one, two = right.replace("cat", "bat"), right.replace("cat", "bat").replace("mat", "hat")

    def decision(internal: str, *candidates: str) -> str:
        return decide(wer, Hypotheses(SOUND, internal, list(candidates)), right, 0.15)

    assert decision(right, one) == decision(right, right) == ACCEPT
    assert decision(one, right) == ACCEPT  # 10 % is below the threshold
    assert decision(two, two, "something else") == ACCEPT  # no candidate is better
    assert decision(two, "something else", one) == decision("", two) == INTEGRATE


def test_an_answer_begins_with_the_control_token_and_no_text_does(folder):
    tokenizer = Tokenizer(folder)
    accept, integrate = tokenizer.token_id(ACCEPT), tokenizer.token_id(INTEGRATE)
    question = Message("user", (f"{ACCEPT} or {INTEGRATE}?",))
    asked = Conversation((question, Message("assistant", (f"{INTEGRATE}red {ACCEPT}",))))
    ids, trained = tokenizer.encode_conversation(asked)
    assert list(ids).count(integrate) == 1 and accept not in ids
    assert ids[trained].tolist() == [integrate, *tokenizer.encode(f"red {ACCEPT}"), tokenizer.eos_id]
    assert tokenizer.decode(ids[trained].tolist()) == f"red {ACCEPT}"
    plain, trained = tiny_tokenizer().encode_conversation(Conversation((question, Message("assistant", (ACCEPT,)))))
    assert tiny_tokenizer().decode(plain[trained].tolist()) == ACCEPT  # a vocabulary without it: text


def test_the_vocabulary_grows_by_the_two_tokens(folder):
    size = tiny_config().text.vocab_size
    tokenizer, params, before = Tokenizer(folder), model_dir.load(folder).params, random_params(tiny_config())
    new = [tokenizer.token_id(ACCEPT), tokenizer.token_id(INTEGRATE)]
    assert new == [tiny_tokenizer().vocab_size, tiny_tokenizer().vocab_size + 1] and tokenizer.vocab_size <= size
    old, table = (np.array(tree["llm"]["embed_tokens"]["embedding"]) for tree in (before, params))
    np.testing.assert_allclose(table[new], [old[:size].mean(axis=0)] * 2, atol=1e-6)
    kept = np.setdiff1d(np.arange(len(old)), new)
    assert np.array_equal(table[kept], old[kept])
    with pytest.raises(UserError, match="its vocabulary has <accept_internal> already"):
        add_control_tokens(folder, folder.parent / "again")


def test_the_first_token_chooses_the_text(folder):
    tokenizer = Tokenizer(folder)

    def final(*tokens: int | None) -> str:
        return choose_text(Answer(" the text ", tokens, "end", 9, 0.1, 1.0), "internal", tokenizer)

    accept, integrate = tokenizer.token_id(ACCEPT), tokenizer.token_id(INTEGRATE)
    assert final(accept, 5) == "internal" and final(integrate, 5) == "the text"
    for tokens in ((5, accept), ()):
        with pytest.raises(UserError, match="the model begins with no control token"):
            final(*tokens)


class Listener(Assistant):
    """Hears "hello" in every sound; then accepts that for the sound a, and integrates "hallo" for others."""

    asked: list

    def generate_batch(self, questions, **sampling):
        answers, tokenizer = [], self.processor.tokenizer
        for question in questions:
            Listener.asked.append(question)
            text, first = "hello", 5
            if len(question.messages[0].content) == 3:
                accepts = Path(question.media[0].path).name == "a.wav"
                text, first = ("", tokenizer.token_id(ACCEPT)) if accepts else ("hallo", tokenizer.token_id(INTEGRATE))
            answers.append(Answer(text, (first,), "end", 9, 0.1, 1.0))
        return answers


class Recogniser:
    def transcribe(self, waveform, count=1):
        assert count == 5
        return ["hallo", "hollow"]


def test_data_and_transcripts(folder, tmp_path, monkeypatch, capsys):
    config = tiny_config()
    processor = Processor(config, Tokenizer(folder))
    Listener.asked = []
    monkeypatch.setattr(command, "load", lambda *_: Listener(OmniVinci(config), {}, processor))
    monkeypatch.setattr(command, "make_recogniser", lambda *_: Recogniser())
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "rag.jsonl"
    rows = [("a.wav", "hello"), ("b.wav", "hallo"), ("c.wav", ""), ("none.wav", "x")]
    corpus.write_text("".join(json.dumps({"audio": name, "text": text}) + "\n" for name, text in rows))
    for name, _ in rows[:3]:
        soundfile.write(tmp_path / name, np.zeros(1600), 16000)
    flags = ["--model", str(folder), "--recogniser", "pocketsphinx"]
    assert cli.main(["rag-data", str(corpus), *flags, "--out", str(out), "--max_skipped", "0.02"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}: 1 {ACCEPT}, 1 {INTEGRATE}\n"
    assert "corpus.jsonl:3: the reference '' has no words" in printed.err and "none.wav: no such file" in printed.err
    records = open_records(out)
    first, second = (records.conversation(entry) for entry in records.entries())
    expected = ask_correction(Media("sound", str(tmp_path / "a.wav")), "hello", ["hallo", "hollow"]).messages[0]
    assert first.messages == (expected, Message("assistant", (f"{ACCEPT}hello",)))
    assert second.messages[1].content == (f"{INTEGRATE}hallo",)
    ids, trained = processor.tokenizer.encode_conversation(second)
    assert ids[trained][0] == processor.tokenizer.token_id(INTEGRATE)

    for name, text in (("a.wav", "hello"), ("b.wav", "hallo")):
        assert cli.main(["transcribe", str(tmp_path / name), *flags, "--rag"]) == 0
        assert capsys.readouterr().out == f"{text}\n"
    assert Listener.asked[-1].messages[0].content[0].startswith("Task: Perform reference-augmented correction")
    assert cli.main(["transcribe", str(tmp_path / "a.wav"), "--model", str(folder), "--rag"]) == 2
    assert "--rag corrects a model's texts by a recogniser's" in capsys.readouterr().err
