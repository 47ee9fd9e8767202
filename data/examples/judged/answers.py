"""Encodes answers to one prompt as the segments of an example, for kinds that compare or score answers.

Every segment is the prompt and one answer, written with a chat template as the kind `chat` writes conversations. All
answers follow the same tokens of the prompt, because otherwise their probabilities would not be comparable.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data.batch import TRAINED, DataError
from data.examples.chat import Chat, Tools
from data.examples.example import CUT, Context, Example, LeftOut, cut_prompt
from data.tokens.templates import Message
from data.tokens.tokenizer import Tokenizer

Answers = list[tuple[np.ndarray, int]]  # ids and rank of each


class Answering:
    """Encodes prompts and answers for a kind of examples.

    Args:
      kind: its name, for messages.
      settings: the block data.KIND, with `template` and `system`.
      context: what the examples are encoded for.
      scored: False: every token of an answer is a target. True: a segment is the whole text of the conversation and is
        trained at its last token alone, without a target.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any], context: Context, scored: bool = False):
        self._kind, self._context, self._scored = kind, context, scored
        self._chat = chat_of(kind, settings, context.tokenizer)

    def prompt(self, messages: Sequence[Message], tools: Tools) -> np.ndarray:
        return np.asarray(renamed(self._kind, self._chat.prompt, messages, tools), np.int32)

    def answer(self, messages: Sequence[Message], answer: Message, tools: Tools, prompt: np.ndarray) -> np.ndarray:
        """Returns the ids of an answer behind the ids of its prompt, with the end token.

        If answers are scored, it also has what the template writes after an answer.

        Raises:
          ValueError: the template writes the prompt differently once it is answered.
        """
        ids, trained, _ = renamed(self._kind, self._chat.encode, [*messages, answer], tools)
        if not np.array_equal(ids[: len(prompt)], prompt):
            raise ValueError(
                "the chat template writes the prompt of this record differently once an answer follows, so answers to "
                f"it can't be compared; set config.data.{self._kind}.template to another one, or remove the record"
            )
        end = len(ids) if self._scored else int(np.flatnonzero(trained)[-1]) + 1
        return ids[len(prompt) : end]

    def segments(self, prompt: np.ndarray, answers: Answers) -> list[Example]:
        """Returns a segment for each answer, cut so that all of them fit into one row.

        Raises:
          LeftOut: there are too many answers for a row.
        """
        context = self._context
        # The last token of an answer is only a target, except that a reward model reads it.
        room = context.seq_len - len(answers) * (len(context.prefix) - (not self._scored))
        read, said = _lengths(len(prompt), [len(ids) for ids, _ in answers], room)
        if said < 1:
            raise LeftOut(f"{self._kind} have too many answers for a row; raise data.seq_len")
        cut = read < len(prompt) or said < max(len(ids) for ids, _ in answers)
        prompt = cut_prompt(prompt, read, context.tokenizer.special.begin)
        made = _whole if self._scored else _said
        first, *rest = [made(prompt, ids[:said])._replace(rank=rank) for ids, rank in answers]
        return [first._replace(notes=(CUT.format(context.seq_len),) if cut else ()), *rest]


def chat_of(kind: str, settings: Mapping[str, Any], tokenizer: Tokenizer) -> Chat:
    """Returns how this kind writes conversations; a DataError names its own fields."""
    return renamed(kind, Chat, tokenizer, settings)


def renamed(kind: str, function: Callable, *given: Any) -> Any:
    """Calls a function of conversations, whose errors then name the fields of this kind."""
    try:
        return function(*given)
    except (DataError, ValueError) as error:
        made = DataError if isinstance(error, DataError) else ValueError
        raise made(str(error).replace("data.chat.", f"data.{kind}.")) from error


def _said(prompt: np.ndarray, answer: np.ndarray) -> Example:
    """Returns the example whose targets are the tokens of the answer."""
    return Example.of_ids(np.concatenate([prompt, answer]), [False] * len(prompt) + [True] * len(answer))


def _whole(prompt: np.ndarray, answer: np.ndarray) -> Example:
    """Returns the example that is trained at the answer's last token alone."""
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    marks = np.zeros(len(tokens), np.uint8)
    marks[-1] = TRAINED
    return Example(tokens, np.zeros_like(tokens), marks)


def _lengths(prompt: int, answers: list[int], room: int) -> tuple[int, int]:
    """Returns how many ids of the prompt and at most of each answer fit into `room`; less than 1 of an answer: none do.

    The prompt keeps at least a quarter of the room of one answer, as in data/examples/example.py, `cut`, and of several
    at least an eighth of the whole room: answers to a prompt that is not there teach nothing.
    """
    n = len(answers)
    over = n * prompt + sum(answers) - room
    if over <= 0:
        return prompt, max(answers)
    read = max(prompt - -(-over // n), min(prompt, max(room // min(4 * n, 8), 1)))
    said, left, more = 0, room - n * read, sorted(answers)
    while more and left >= len(more) * (more[0] - said):  # short answers leave room for longer ones
        left -= len(more) * (more[0] - said)
        said = more.pop(0)
    return read, said + (left // len(more) if more else 0)
