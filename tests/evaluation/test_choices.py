"""Which option an answer names."""

import pytest

from omnivinci_jax.evaluation.choices import find_option

OPTIONS = ("a red car", "rain", "B flat", "two dogs")
EIGHT = ("one", "2", "2.5", "four", "夏天", "snow", "rain and snow", "rain")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(C)", "C"), ("D.", "D"), ("**D**", "D"), ("（Ｂ）", "B"), ("Answer: (C)", "C"),
        ("The answer is B.", "B"), ("The answer is A because it rains", "A"), ("I choose option D", "D"),
        ("First A, then C? No. The answer is D.", "D"), ("It's A", "A"), ("B. rain", "B"), ("(b) Rain.", "B"),
        ("Rain.", "B"), ("It is B flat, I think.", "C"), ("The answer is B flat", "C"), ("It is raining rain", "B"),
        ("<think>A or B?</think><answer>D</answer>", "D"), ("Because of the rain", "B"),
        # letters in words, articles and pronouns, negations
        ("Because", None), ("CD", None), ("ABBA", None), ("D-day", None), ("A dog barks", None),
        ("Answer: A dog", None), ("I cannot answer this.", None), ("Not B", None),
        ("Sorry, as an AI I can't hear it.", None),
        # all options named, two of them, none of them
        ("A, B, C and D", None), ("A. a red car B. rain C. B flat D. two dogs", None), ("A or B", None),
        ("rain and two dogs", None), ("B. two dogs", None), ("E", None), ("", None), (" \n", None), ("two", None),
    ],
)  # fmt: skip
def test_the_letter_or_the_text_of_one_option_counts(answer, letter):
    found = find_option(answer, OPTIONS)
    assert found.index == (None if letter is None else "ABCD".index(letter)), found


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("H", "H"), ("(G)", "G"), ("Answer: E", "E"), ("There are 2.", "B"), ("There are 2.5 of them", "C"),
        ("There are 2,5", None), ("12", None), ("rain and snow", "G"), ("It was rain and snow!", "G"),
        ("It snowed", None),
        ("snow, not rain", None), ("我觉得是夏天。", "E"), ("I", None), ("someone", None), ("One", "A"), ("two", None),
    ],
)  # fmt: skip
def test_eight_options(answer, letter):
    found = find_option(answer, EIGHT)
    assert found.index == (None if letter is None else "ABCDEFGH".index(letter)), found


def test_it_says_why():
    assert find_option("A or B", OPTIONS).why == "the answer names several options: A, B"
    assert find_option("", OPTIONS).why == "the answer is empty"
    assert find_option("Who knows", OPTIONS).why == "the answer names no option"
