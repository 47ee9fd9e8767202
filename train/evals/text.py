"""Metrics that compare generated texts with references: BLEU, chrF, ROUGE, exact match and F1, all from 0 to 100.

    bleu         corpus BLEU of sacrebleu (arXiv:1804.08771); its tokenizer is an option
    chrf         corpus chrF2 of sacrebleu (doi:10.18653/v1/W15-3049)
    rouge        rouge1, rouge2 and rougeL of rouge-score: F measure without stemming, averaged over the texts
    exact_match  share of the texts that equal their reference after normalization
    f1           F1 of the words that a text and its reference share, averaged over the texts

Normalization follows the SQuAD script (arXiv:1606.05250): lower case, no punctuation, no English articles, single
spaces. As in the MLQA script (arXiv:1910.07475), punctuation of all languages is removed and each Chinese character is
a word. CMRC defines its own F1 by the longest common substring (arXiv:1810.07366); that metric is not here. For ROUGE
each Chinese character is a word too. Otherwise rouge-score keeps only a to z and digits, as Google's script does, so
words in other alphabets do not count.
"""

import importlib.metadata
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from train.evals.intervals import Value

TOKENIZERS = ("13a", "zh", "intl", "char", "none")  # those of sacrebleu that need no other package and no download

_CHINESE = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def grade(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str], tokenizer: str = "13a"
) -> dict[str, float]:
    """Returns the values of `metrics` over texts with one reference each, by name.

    Args:
      predictions: generated texts.
      references: one per prediction.
      metrics: names in METRICS; 'rouge' gives three values.
      tokenizer: BLEU's tokenizer, one of TOKENIZERS: 13a for languages that put spaces between words, zh for Chinese.

    Raises:
      ValueError: a metric or the tokenizer is unknown, there are no texts, or there is not one reference per text.
    """
    return {name: one.figure() for name, one in scored(predictions, references, metrics, tokenizer).items()}


class Scored(NamedTuple):
    """A metric's statistics of each text; their sums give its value."""

    rows_NK: np.ndarray  # float64; N texts, K statistics
    value: Value  # from 0 to 100

    def figure(self) -> float:
        """Returns the value over all texts."""
        sums = [sum(column) for column in self.rows_NK.T.tolist()]
        return self.value(np.array([sums]), np.array([len(self.rows_NK)])).item()


def scored(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str], tokenizer: str = "13a"
) -> dict[str, Scored]:
    """Returns the statistics of each text behind the values of `grade`, for intervals (train/evals/intervals.py).

    The arguments and errors are those of `grade`.
    """
    check(metrics, tokenizer)
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} texts and {len(references)} references; each text needs one")
    found: dict[str, Scored] = {}
    for metric in metrics:
        found |= METRICS[metric](predictions, references, tokenizer)
    return found


def check(metrics: Sequence[str], tokenizer: str = "13a") -> None:
    """Raises a ValueError if `grade` does not know a metric or the tokenizer."""
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"unknown BLEU tokenizer {tokenizer!r}; choose from {', '.join(TOKENIZERS)}")


def signatures(metrics: Sequence[str], tokenizer: str = "13a") -> dict[str, str]:
    """Returns the settings and version behind each metric, to publish beside its values."""
    version = f"rouge-score {importlib.metadata.version('rouge-score')}, F measure, no stemming"
    known = {"bleu": _signature(_bleu(tokenizer)), "chrf": _signature(CHRF()), "rouge": version}
    return {metric: known[metric] for metric in metrics if metric in known}


def _bleu(tokenizer: str) -> BLEU:
    return BLEU(tokenize=tokenizer, force=True)  # force: no warning about texts that look tokenized


def _signature(metric: BLEU | CHRF) -> str:
    metric.corpus_score(["a"], [["a"]])  # the signature needs the number of references, known only after a score
    return metric.get_signature().format()


def _of_counts(name: str, metric: BLEU | CHRF, predictions, references) -> dict[str, Scored]:
    """Returns the n-gram counts of each text and what sacrebleu makes of their sums.

    sacrebleu's own significance.py calls these two methods too; its public ones give no statistics of single texts.
    """

    def value(sums_BK: np.ndarray, count_B: np.ndarray) -> np.ndarray:
        return np.array([metric._compute_score_from_stats(sums).score for sums in sums_BK.tolist()])

    rows_NK = metric._extract_corpus_statistics(predictions, [references])
    return {name: Scored(np.array(rows_NK, float), value)}


def _of_bleu(predictions, references, tokenizer) -> dict[str, Scored]:
    return _of_counts("bleu", _bleu(tokenizer), predictions, references)


def _of_chrf(predictions, references, tokenizer) -> dict[str, Scored]:
    return _of_counts("chrf", CHRF(), predictions, references)


def _of_scores(scores: Sequence[float]) -> Scored:
    """Returns a metric that is the mean of scores from 0 to 1."""
    return Scored(np.array(scores, float)[:, None], lambda sums_B1, count_B: 100 * sums_B1[:, 0] / count_B)


def _of_rouge(predictions, references, tokenizer) -> dict[str, Scored]:
    from rouge_score import rouge_scorer, tokenizers  # imported here: they import scipy, a third of the start-up time

    class Words(tokenizers.Tokenizer):
        plain = tokenizers.DefaultTokenizer(use_stemmer=False)

        def tokenize(self, text: str) -> list[str]:
            pieces = _CHINESE.split(text)  # text, character, text, character, ..., text
            found: list[str] = []
            for number, piece in enumerate(pieces):
                found += [piece] if number % 2 else self.plain.tokenize(piece)
            return found

    names = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(names, tokenizer=Words())
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {name: _of_scores([score[name].fmeasure for score in scores]) for name in names}


def words(text: str) -> list[str]:
    """Returns the words of a text after normalization."""
    kept = (char for char in text.lower() if char not in string.punctuation and unicodedata.category(char)[0] != "P")
    return _CHINESE.sub(r" \1 ", _ARTICLES.sub(" ", "".join(kept))).split()


def _exact(text: list[str], reference: list[str]) -> float:
    return float(text == reference)


def _f1(text: list[str], reference: list[str]) -> float:
    """Returns the F1 of the shared words. If one side has no words: 1 if neither has, as in the SQuAD 2.0 script."""
    if not text or not reference:
        return _exact(text, reference)
    shared = (Counter(text) & Counter(reference)).total()
    return 2 * shared / (len(text) + len(reference))


def _mean(name: str, of: Callable[[list[str], list[str]], float]):
    def run(predictions, references, tokenizer) -> dict[str, Scored]:
        pairs = zip(predictions, references, strict=True)
        return {name: _of_scores([of(words(text), words(reference)) for text, reference in pairs])}

    return run


METRICS = {
    "bleu": _of_bleu,
    "chrf": _of_chrf,
    "rouge": _of_rouge,
    "exact_match": _mean("exact_match", _exact),
    "f1": _mean("f1", _f1),
}
