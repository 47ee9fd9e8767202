"""Text metrics equal values in sacrebleu's and rouge-score's own tests, and counts by hand."""

import math

import pytest

from train.evals.text import check, grade, signatures, words


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
