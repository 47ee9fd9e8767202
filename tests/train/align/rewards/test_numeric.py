"""Numbers as models and data sets write them. The values were written down by hand."""

import random
import time
from fractions import Fraction

import pytest

from train.align.rewards.numeric import Numeric, read
from train.align.rewards.reward import RewardError

CASES = {
    # GSM8K: the line of ####, and what models write instead
    "He has 5 + 13 = <<5+13=18>>18 left.\n#### 18": 18,
    "#### 18\n\nQuestion: If 3 men dig 4 holes": 18,
    "#### -1,234.50": Fraction(-2469, 2),
    "####": None,
    "The answer is 18.": 18,
    "The answer is $1,234,567.89 in 5 words": 5,
    "It costs **$35**.": 35,
    "答案是18。": 18,
    "Die Antwort ist 18": 18,
    # signs
    "-3": -3,
    "x=-3": -3,
    "x = −3": -3,
    "10-3": 3,
    "10 - 3 = 7": 7,
    "(-3)": -3,
    "-$5": -5,
    "$-5": -5,
    "COVID-19": 19,
    # decimals and separators
    "3.50": Fraction(7, 2),
    ".5": Fraction(1, 2),
    "1,2,3": 3,
    "1{,}234": 1234,
    r"10\,000": 10000,
    "10\u202f000": 10000,
    "12,34": 34,
    "1.5e-3": Fraction(3, 2000),
    "2E3": 2000,
    "6.02 x 10^23": 602 * 10**21,
    r"3\times10^{-4}": Fraction(3, 10**4),
    "10^5": 10**5,
    # fractions
    "3/4": Fraction(3, 4),
    "-1/2": Fraction(-1, 2),
    "1 1/2 cups": Fraction(3, 2),
    r"\frac{3}{4}": Fraction(3, 4),
    r"-\dfrac{1}{2}": Fraction(-1, 2),
    r"2\frac{1}{2}": Fraction(5, 2),
    r"\frac12": Fraction(1, 2),
    "1/0": None,
    # LaTeX boxes
    r"\boxed{18}": 18,
    r"So \boxed{18}. I checked it in 3 ways.": 18,
    r"\boxed{1} or rather \boxed{2}": 2,
    r"\boxed{\frac{3}{4}}": Fraction(3, 4),
    r"\boxed{5 \text{ cm}^2}": 5,
    r"\boxed{x = -7}": -7,
    r"\boxed{\$1{,}000}": 1000,
    r"\boxed{}, perhaps 3": None,
    r"\boxed{12": 12,
    # what is not a number of its own
    "H2O": None,
    "25 m^2": 25,
    r"25 m^{2}": 25,
    "x_1 = 4, x_2": 4,
    "": None,
    "none": None,
    "nan": None,
    "infinity": None,
    # other scripts
    "３４５": 345,
    "٣٫٥": Fraction(7, 2),
    "१८": 18,
}


@pytest.mark.parametrize("text", CASES)
def test_the_number_of_a_text(text):
    number = read(text)
    assert (number and number.value) == CASES[text]


@pytest.mark.parametrize(
    "completion, answer, value",
    [
        ("18", "18", 1),
        ("18.0", 18, 1),
        ("18", "She makes 9 * 2 = $18.\n#### 18", 1),
        ("", "18", 0),
        ("", 0, 0),
        ("I don't know", 0, 0),
        ("0", 0, 1),
        ("18 dollars", "18", 1),
        ("1/3", "0.333333333", 1),
        ("0.333", "1/3", 0),
        ("1000001", 1000000, 0),  # whole numbers are exact
        ("0.30000000000000004", 0.3, 1),
        ("1e-5", 1e-5, 1),
        ("50%", "50", 1),
        ("50%", 0.5, 1),
        ("0.5", "50%", 1),
        ("50", "50%", 1),
        ("50%", "50%", 1),
        ("0.5%", "50%", 0),
        ("50", 0.5, 0),
        (r"50\%", 0.5, 1),
        ("5", 5.1, 0),
        ("100000000000000000000", 1e20, 1),
    ],
)
def test_equal(completion, answer, value):
    assert Numeric("answer")("", completion, {"answer": answer}) == value


@pytest.mark.parametrize("answer", [None, True, "", "none", [5], {"a": 5}, float("nan"), float("inf"), "####"])
def test_a_record_without_a_number_is_refused(answer):
    with pytest.raises(RewardError, match="column 'answer' must be or contain a number"):
        Numeric("answer").check({"answer": answer})


def test_any_number_is_read_back():
    """As Python writes it: plain, with separators, as a decimal, in a sentence."""
    numbers = random.Random(0)
    for _ in range(2000):
        whole = numbers.randrange(-(10 ** numbers.randrange(1, 15)), 10 ** numbers.randrange(1, 15))
        decimal = round(whole / 10 ** numbers.randrange(5), 4)
        for text, value in ((f"{whole}", whole), (f"{whole:,}", whole), (repr(decimal), Fraction(repr(decimal)))):
            for said in (text, f"The answer is {text}.", rf"In 3 steps: \boxed{{{text}}}!", f"2 + 2\n#### {text}\n"):
                assert read(said).value == value, said


def test_the_time_grows_with_the_length_of_the_text():
    for text in ("1", "1,", "1 ", "1/", "-", "{", "1e", "111,", " ", "1.1", "\\frac{1}", "10^", "\\boxed{"):
        started = time.monotonic()
        read(text * 20_000)
        assert time.monotonic() - started < 3, text  # 0.1 s; a quadratic search would take minutes
