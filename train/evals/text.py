"""Texts beside references: BLEU, chrF, ROUGE, exact match and F1, all from 0 to 100.

    bleu         of the corpus, sacrebleu's (arXiv:1804.08771); how it splits words is an option
    chrf         of the corpus, sacrebleu's chrF2 (doi:10.18653/v1/W15-3049)
    rouge        rouge1, rouge2 and rougeL, rouge-score's: F measure without stemming, mean over the texts
    exact_match  share of the texts that equal their reference once both are normalized
    f1           of the words that a text and its reference share, mean over the texts

Normalized is as in SQuAD's script (arXiv:1606.05250): lower case, no punctuation, no English articles, single spaces.
Punctuation of all languages goes, and each Chinese character is a word, as in MLQA's script (arXiv:1910.07475) for
SQuAD's F1; CMRC's own F1 (arXiv:1810.07366) counts the longest common stretch instead, and is another figure. For ROUGE
a Chinese character is a word too. Otherwise it knows nothing but a to z and digits, as Google's script: words of other
alphabets don't count.
"""

import importlib.metadata
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from sacrebleu.metrics import BLEU, CHRF

TOKENIZERS = ("13a", "zh", "intl", "char", "none")  # of sacrebleu, those that need no other package and no download

_CHINESE = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def grade(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str], tokenizer: str = "13a"
) -> dict[str, float]:
    """The figures of `metrics`, names of METRICS, over texts with one reference each.

    Args:
      tokenizer: how BLEU splits words, one of TOKENIZERS: 13a for languages with spaces, zh for Chinese.

    Raises:
      ValueError: an unknown metric or tokenizer, no texts, or not as many references.
    """
    check(metrics, tokenizer)
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} texts and {len(references)} references; each text needs one")
    found: dict[str, float] = {}
    for metric in metrics:
        found |= METRICS[metric](predictions, references, tokenizer)
    return found


def check(metrics: Sequence[str], tokenizer: str = "13a") -> None:
    """ValueError where `grade` does not know these."""
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"unknown tokenizer {tokenizer!r} of BLEU; choose from {', '.join(TOKENIZERS)}")


def signatures(metrics: Sequence[str], tokenizer: str = "13a") -> dict[str, str]:
    """What to write beside published figures, by metric: settings and versions."""
    version = f"rouge-score {importlib.metadata.version('rouge-score')}, F measure, no stemming"
    known = {"bleu": _signature(_bleu(tokenizer)), "chrf": _signature(CHRF()), "rouge": version}
    return {metric: known[metric] for metric in metrics if metric in known}


def _bleu(tokenizer: str) -> BLEU:
    return BLEU(tokenize=tokenizer, force=True)  # force: no word on texts that seem to be split already


def _signature(metric: BLEU | CHRF) -> str:
    metric.corpus_score(["a"], [["a"]])  # it says how many references there were
    return metric.get_signature().format()


def _of_bleu(predictions, references, tokenizer) -> dict[str, float]:
    return {"bleu": _bleu(tokenizer).corpus_score(predictions, [references]).score}


def _of_chrf(predictions, references, tokenizer) -> dict[str, float]:
    return {"chrf": CHRF().corpus_score(predictions, [references]).score}


def _of_rouge(predictions, references, tokenizer) -> dict[str, float]:
    from rouge_score import rouge_scorer, tokenizers  # these bring scipy: a third of the start of every program

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
    return {name: 100 * sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def words(text: str) -> list[str]:
    """The words of a text, normalized."""
    kept = (char for char in text.lower() if char not in string.punctuation and unicodedata.category(char)[0] != "P")
    return _CHINESE.sub(r" \1 ", _ARTICLES.sub(" ", "".join(kept))).split()


def _exact(text: list[str], reference: list[str]) -> float:
    return float(text == reference)


def _f1(text: list[str], reference: list[str]) -> float:
    """Where one side has no words: whether neither has, as SQuAD 2.0's script."""
    if not text or not reference:
        return _exact(text, reference)
    shared = (Counter(text) & Counter(reference)).total()
    return 2 * shared / (len(text) + len(reference))


def _mean(name: str, of: Callable[[list[str], list[str]], float]):
    def run(predictions, references, tokenizer) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {name: 100 * sum(of(words(text), words(reference)) for text, reference in pairs) / len(predictions)}

    return run


METRICS = {
    "bleu": _of_bleu,
    "chrf": _of_chrf,
    "rouge": _of_rouge,
    "exact_match": _mean("exact_match", _exact),
    "f1": _mean("f1", _f1),
}
