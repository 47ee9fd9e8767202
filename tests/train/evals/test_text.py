"""Text metrics equal values in sacrebleu's and rouge-score's own tests, and counts by hand."""

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from train.evals.intervals import interval, paired
from train.evals.text import METRICS, check, grade, scored, signatures, words


def one(prediction, reference, metric, **options):
    return grade([prediction], [reference], [metric], **options)


def test_bleu_by_its_formula():
    found = grade(["a b c d e", "a b c d"], ["a b c d f", "a b c d e g"], ["bleu"])["bleu"]
    precisions = (8 / 9, 6 / 7, 4 / 5, 2 / 3)  # counts are added over both texts
    assert found == pytest.approx(100 * math.exp(1 - 11 / 9) * math.prod(precisions) ** (1 / 4))


def test_bleu_splits_chinese_as_told():
    text, reference = "我爱北京天", "我爱北京人"
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert one(text, reference, "bleu", tokenizer="zh")["bleu"] == pytest.approx(expected)
    assert one(text, reference, "bleu")["bleu"] == 0  # different single words
    assert "tok:zh" in signatures(["bleu"], "zh")["bleu"] and "nrefs:1" in signatures(["bleu"])["bleu"]


# The first three are from test/test_chrf.py of sacrebleu, where orders that don't occur count as 1e-16 instead of
# nothing. In the last, one letter of two matches, and no pair does.
@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        (
            "Co nás nejvíc trápí, protože lékaři si vybírají, kdo bude žít a kdo zemře.",
            "Nejvíce smutní jsme z toho, že musíme rozhodovat o tom, kdo bude žít a kdo zemře.",
            39.14078509,
        ),
        (
            "Nebo prostě nemají vybavení, které by jim pomohlo, uvedli lékaři.",
            "A někdy nemáme ani potřebný materiál, abychom jim pomohli, popsali lékaři.",
            31.22557079,
        ),
        (
            "Lapali po dechu, jejich životy skončily dřív, než skutečně začaly.",
            "Lapali po dechu a pak jejich život skončil - dřív, než skutečně mohl začít, připomněli.",
            57.15704367,
        ),
        ("aa", "ab", 25.0),
    ],
)
def test_chrf_as_published(prediction, reference, score):
    assert one(prediction, reference, "chrf")["chrf"] == pytest.approx(score, abs=1e-3)


def test_rouge_by_hand():
    """The first text is from rouge-score's own test; the second shares a, c, d in this order, and one pair."""
    found = grade(["testing", "a c x d"], ["testing one two", "A, b c d"], ["rouge"])
    first, second = 2 * 1 * (1 / 3) / (1 + 1 / 3), 3 / 4
    assert found["rouge1"] == pytest.approx(50 * (first + second))
    assert found["rougeL"] == pytest.approx(50 * (first + second))
    assert found["rouge2"] == pytest.approx(0)
    assert one("b c d", "a b c d", "rouge")["rouge2"] == pytest.approx(100 * 2 * (2 / 2) * (2 / 3) / (1 + 2 / 3))
    assert one("dogs", "dog", "rouge")["rouge1"] == 0  # no stemming


def test_rouge_and_f1_count_chinese_by_characters():
    text, reference = "他在北京，2008年", "他去北京。"
    # 他 在 北 京 2008 年 and 他 去 北 京: three are shared.
    expected = 100 * 2 * 3 / (6 + 4)
    assert one(text, reference, "rouge")["rouge1"] == pytest.approx(expected)
    assert one(text, reference, "f1")["f1"] == pytest.approx(expected)
    assert one("「北京」", "北京", "exact_match")["exact_match"] == 100


def test_exact_match_and_f1_by_squads_rules():
    assert words("The  Eiffel-Tower, in\nan U.S. city!") == ["eiffeltower", "in", "us", "city"]
    found = grade(["The Broncos.", "in 1990 the"], ["broncos", "1990"], ["exact_match", "f1"])
    assert found == {"exact_match": 50.0, "f1": pytest.approx(50 * (1 + 2 * (1 / 2) / (1 / 2 + 1)))}
    # A word counts as often as both texts have it.
    assert one("b b c", "b c c", "f1")["f1"] == pytest.approx(100 * 2 / 3)
    assert one("the", "...", "f1")["f1"] == 100 and one("", "x", "f1")["f1"] == 0


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"unknown metric 'meteor'; choose from bleu, chrf, rouge"):
        check(["bleu", "meteor"])
    with pytest.raises(ValueError, match="unknown BLEU tokenizer 'ja-mecab'; choose from 13a, zh"):
        check(["bleu"], "ja-mecab")
    with pytest.raises(ValueError, match="2 texts and 1 references"):
        grade(["a", "b"], ["a"], ["f1"])


def texts(count, kept):
    """Returns texts with a share of the words of their references, and the references."""
    rng = np.random.default_rng(0)
    references = [[f"w{word}" for word in rng.integers(0, 50, rng.integers(5, 20))] for _ in range(count)]
    said = [[word for word in reference if rng.random() < kept] for reference in references]
    return [" ".join(one) for one in said], [" ".join(one) for one in references]


def test_statistics_of_texts_add_up_to_the_figures():
    said, references = texts(60, 0.8)
    found, figures = scored(said, references, [*METRICS]), grade(said, references, [*METRICS])
    assert {name: one.figure() for name, one in found.items()} == figures and len(figures) == 7
    assert figures["bleu"] == BLEU(force=True).corpus_score(said, [references]).score
    assert figures["chrf"] == CHRF().corpus_score(said, [references]).score
    for name, one in found.items():
        low, high = interval(one.rows_NK, one.value)
        assert 0 <= low < figures[name] < high <= 100 and high - low > 3, name


def test_intervals_of_corpus_metrics_are_those_of_sacrebleus_bootstrap():
    said, references = texts(300, 0.8)
    found = scored(said, references, ["bleu", "chrf"])
    for name, metric in (("bleu", BLEU(force=True)), ("chrf", CHRF())):
        score = metric.corpus_score(said, [references], n_bootstrap=2000)
        low, high = interval(found[name].rows_NK, found[name].value)
        assert (high - low) / 2 == pytest.approx(score._ci, rel=0.1)
        assert (high + low) / 2 == pytest.approx(score._mean, abs=0.1 * score._ci)


def test_a_worse_model_has_a_lower_bleu_and_a_small_p_value():
    said, references = texts(100, 0.9)
    ours, theirs = (scored(one, references, ["bleu"])["bleu"] for one in (said, texts(100, 0.7)[0]))
    found = paired(ours.rows_NK, theirs.rows_NK, ours.value)
    assert found.value == pytest.approx(ours.figure() - theirs.figure())
    assert 0 < found.interval.low < found.value < found.interval.high and found.p < 1e-3
