"""The sizes and the texts that all sides train on: every text has the same number of letters, so no side pads."""

import random
import string

PROMPT, ANSWER = 32, 31  # letters; an end token follows the answer
PAIRS = 32  # per step, 2 x 64 tokens each
GROUPS, GROUP, NEW = 8, 8, 32  # prompts per round, answers to each, tokens of each answer
LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY = 4, 128, 4, 344, 64
LEARNING_RATE, BETA = 1e-5, 0.1


def texts(count: int, length: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_lowercase, k=length)) for _ in range(count)]


def preferences(count: int = 2048) -> list[dict[str, str]]:
    columns = texts(count, PROMPT, 0), texts(count, ANSWER, 1), texts(count, ANSWER, 2)
    return [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in zip(*columns, strict=True)]


def prompts(count: int = 2048) -> list[dict[str, str]]:
    return [{"prompt": text} for text in texts(count, PROMPT, 0)]


def reward(text: str) -> float:
    """Returns the share of vowels."""
    return sum(letter in "aeiou" for letter in text) / NEW
