"""The share of a text in a language, on sentences whose language is known."""

import pytest

from train.align.rewards import language
from train.align.rewards.language import Language
from train.align.rewards.reward import RewardError

# The first article of the Universal Declaration of Human Rights.
TEXTS = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón.",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
}


@pytest.mark.parametrize("code", TEXTS)
def test_one_language(code):
    values = {other: Language.of(other)("", TEXTS[code], {}) for other in TEXTS}
    assert values == {other: float(other == code) for other in TEXTS}


def test_a_mixture_is_a_share():
    mixed = TEXTS["ko"] * 3 + "\n" + TEXTS["en"] * 3
    shares = [Language.of(code)("", mixed, {}) for code in ("ko", "en", "de")]
    size = {code: len(TEXTS[code].encode()) for code in ("ko", "en")}  # CLD2 counts bytes
    assert (
        shares[0] == pytest.approx(size["ko"] / (size["ko"] + size["en"]), abs=0.05)
        and sum(shares) == pytest.approx(1)
        and shares[2] == 0
    )


@pytest.mark.parametrize("text", ["", "42", "   ", "\x00\x01", "\ud800", "!?", "12 + 30 = 42"])
def test_no_language(text):
    assert Language.of("en")("", text, {}) == 0


def test_an_unknown_code_is_refused():
    with pytest.raises(RewardError, match="'english' is no code of a language"):
        Language.of("english")
    assert Language.of(" EN ") == Language.of("en")


def test_a_machine_without_the_package_is_told(monkeypatch):
    monkeypatch.setattr(language, "pycld2", None)
    with pytest.raises(RewardError, match="pip install pycld2"):
        Language.of("en")
