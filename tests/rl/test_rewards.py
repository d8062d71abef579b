import pytest

from omnivinci_jax.data.questions import Question, read_question
from omnivinci_jax.errors import ConfigError, DataError, UserError
from omnivinci_jax.rl.reward_workers import RewardWorkers
from omnivinci_jax.rl.rewards import Answered, Rewards, accuracy_reward, format_reward
from omnivinci_jax.settings import GRPOConfig, RewardConfig

QUESTION = Question("B", ("a red car", "rain", "B flat", "two dogs."))


def answered(text: str, question: Question = QUESTION, **record) -> Answered:
    return Answered("Which?", text, record, question, "mine.jsonl:7")


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>It falls.</think><answer>B</answer>", 1),
        ("\n<think>\nIt\nfalls.</think>\n\n<answer>rain</answer>\n", 1),
        ("<think></think><answer></answer>", 1),
        ("<answer>B</answer>", 0),
        ("<think>It falls.</think>", 0),
        ("Well: <think>It falls.</think><answer>B</answer>", 0),
        ("<think>It falls.</think><answer>B</answer> Yes.", 0),
        ("<think>It falls.</think> so <answer>B</answer>", 0),
        ("<think>It falls.</think><answer>B</answer><answer>C</answer>", 0),
        ("<think>a</think><think>b</think><answer>B</answer>", 0),
        ("<answer>B</answer><think>It falls.</think>", 0),
        ("<think>It falls.<answer>B</answer>", 0),
        ("<THINK>It falls.</THINK><ANSWER>B</ANSWER>", 0),
    ],
)
def test_the_format_must_be_there_in_full(text, reward):
    assert format_reward(answered(text)) == reward


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), (" B. ", 1), ("B. rain", 1), ("(b) Rain.", 1), ("rain", 1), (" Rain.\n", 1),
        ("A", 0), ("C", 0), ("B. two dogs", 0), ("a red car", 0), ("B flat", 0), ("E", 0), ("rain or snow", 0), ("", 0),
        ("AB", 0), ("B, C", 0),
    ],
)  # fmt: skip
def test_accuracy_takes_the_letter_or_the_text_of_the_right_option(answer, reward):
    assert accuracy_reward(answered(f"<think>A?</think><answer>{answer}</answer>")) == reward
    assert accuracy_reward(answered(f"<answer>{answer}</answer>")) == reward  # the format has its own reward
    assert accuracy_reward(answered(answer)) == 0
    assert accuracy_reward(answered(f"<answer>{answer}</answer><answer>A</answer>")) == 0


def test_the_right_answer_may_be_a_text_and_options_may_have_letters():
    question = read_question({"answer": "two dogs", "options": ["A. a red car", "B. two dogs"]}, "mine.jsonl:1")
    assert question == Question("two dogs", ("a red car", "two dogs"))
    assert question.is_right("B") and question.is_right("two dogs") and not question.is_right("A")
    free = read_question({"solution": " <answer>4.5 s</answer>\n"}, "mine.jsonl:1")
    assert free == Question("4.5 s") and free.is_right("4.5  S.") and not free.is_right("4")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, 'there is no "answer" beside the messages'),
        ({"answer": " "}, "'answer' is ' '"),
        ({"answer": 3}, "'answer' is 3"),
        ({"answer": "E", "options": ["x", "y"]}, "the answer 'E' is none of the options ['x', 'y']"),
        ({"solution": "<answer>z</answer>", "options": ["x", "y"]}, "the solution 'z' is none of the options"),
        ({"answer": "A", "options": "x"}, "'options' must be a list of texts: 'x'"),
    ],
)
def test_a_record_without_a_right_answer_is_named(record, message):
    with pytest.raises(DataError) as error:
        read_question(record, "mine.jsonl:4")
    assert str(error.value).startswith("mine.jsonl:4: ") and message in str(error.value)


def test_rewards_are_weighted_and_own_functions_run_in_processes():
    settings = GRPOConfig(
        rewards=(
            RewardConfig("accuracy", 2.0),
            RewardConfig("format", 0.5),
            RewardConfig("length", 0.1, "tests.rl.reward_functions:length"),
        ),
        reward_workers=1,
    )
    with Rewards(settings) as rewards:
        texts = ["<think></think><answer>B</answer>", "<answer>B</answer>", ""]
        found = rewards([answered(text, bonus=3) for text in texts])
        assert found.tolist() == [[1, 1, 0], [1, 0, 0], [36, 21, 3]]
        assert rewards.total(found).tolist() == pytest.approx([2 + 0.5 + 3.6, 2 + 2.1, 0.3])


def test_a_broken_reward_is_one_line_that_names_the_record():
    functions = {
        "is_nan": "returned nan, not a finite number",
        "raises": "raised KeyError: 'bad'",
        "text": "returned \"'good'\", not a finite number",
        "exits": "ended its process",
    }
    for function, problem in functions.items():
        workers = RewardWorkers("mine", f"tests.rl.reward_functions:{function}", 1, 30)
        with pytest.raises(UserError) as error:
            workers([answered("bad")])
        workers.close()
        assert str(error.value) == (
            f"mine.jsonl:7: the reward 'mine' (tests.rl.reward_functions:{function}) {problem}, for the answer 'bad'"
        )


def test_a_reward_that_hangs_is_ended_and_the_next_call_has_a_new_process():
    workers = RewardWorkers("mine", "tests.rl.reward_functions:hangs", 1, 2)
    with pytest.raises(UserError, match=r"mine.jsonl:7: .* took more than 2 s, for the answer 'bad'"):
        workers([answered("bad")])
    assert workers([answered("good")]) == [1.0]
    workers.close()


def test_unknown_rewards_are_errors():
    with pytest.raises(ConfigError, match=r"config.grpo.rewards.acuracy: no such reward; did you mean accuracy"):
        Rewards(GRPOConfig(rewards=(RewardConfig("acuracy"),)))
    with pytest.raises(ConfigError, match=r"'tests.rl.reward_functions:none' cannot be used: AttributeError"):
        RewardWorkers("mine", "tests.rl.reward_functions:none", 1, 5)
