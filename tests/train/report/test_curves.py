"""A report draws what its objective declares: lines, dots, legends, baselines and families of metrics."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest

from tests.train.report.pages import dots, figures, key, lines, report, sections
from train.early_stopping import lower_is_better
from train.objectives import table
from train.objectives.objective import Curve, Headline, Objective, family, meaning
from train.record import metrics

ALWAYS = ["Learning rate", "Gradient norm", "Tokens per second"]


def run(workdir, name, trained=(), evaluated=(), steps=8, **summary):
    """Writes the metrics of a run: those `trained` in every step, and those `evaluated` in every second one."""
    writer = metrics.Writer(workdir)
    for step in range(steps + 1):
        ramp = {one: 0.5 + (place + 1) * step / 100 for place, one in enumerate(dict.fromkeys([*trained, *evaluated]))}
        if step:
            writer.write(step, {one: ramp[one] for one in trained} | {"learning_rate": 1e-3, "grad_norm": 2.0})
        if step % 2 == 0:
            writer.write(step, {f"validation/{one}": ramp[one] for one in evaluated})
    writer.close()
    (workdir / "config.json").write_text(json.dumps({"objective": {"name": name}, "eval_rows": 32}))
    (workdir / "summary.json").write_text(json.dumps(summary))
    return report(workdir)


def test_a_preference_run_shows_what_was_measured(tmp_path):
    trained = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
    page = run(tmp_path, "preference", trained, (*trained, "kl"))
    found = figures(page)
    assert [*found] == ["Loss", "Accuracy", "Margin", "Implicit rewards", "KL to the reference", *ALWAYS[:2]]
    assert len(found["Loss"].all("svg")) == 2 and all(len(found[name].all("svg")) == 1 for name in [*found][1:])
    assert "equal scores count half" in found["Accuracy"].text
    assert key(found["Accuracy"]) == ["train", "validation", "chance 0.5"]
    assert key(found["Implicit rewards"]) == ["chosen reward", "rejected reward", "validation"]
    assert key(found["KL to the reference"]) == ["validation"]
    assert len(dots(found["KL to the reference"].all("svg")[0], "second")) == 5


def test_the_line_of_chance_is_where_a_metric_is_a_half(tmp_path):
    accuracy = figures(run(tmp_path, "preference", (), ("accuracy",)))["Accuracy"].all("svg")[0]
    (level,) = lines(accuracy, "muted", dashed=True)
    (_, first), *later = dots(accuracy, "second")  # 0.5, then more
    assert level[0][1] == pytest.approx(level[1][1]) and first == pytest.approx(level[0][1], abs=0.01)
    assert all(y < first for _, y in later)


def test_each_of_several_metrics_has_its_colour(tmp_path):
    names = ("chosen_reward", "rejected_reward")
    rewards = figures(run(tmp_path, "preference", names, names))["Implicit rewards"]
    looks = [one.attributes["style"] for one in rewards.all("i") if "style" in one.attributes]
    assert ["accent" in looks[0], "second" in looks[1]] == [True, True] and len(looks) == 2
    chosen, rejected = ([y for _, y in dots(rewards.all("svg")[0], color)] for color in ("accent", "second"))
    assert len(chosen) == len(rejected) == 5
    np.testing.assert_allclose(np.diff(rejected) / np.diff(chosen), 2, rtol=1e-3)  # as in `run`


@dataclasses.dataclass(frozen=True)
class Policy(Objective):
    """Stands for an objective that is added: it only declares."""

    headlines: ClassVar = (Headline("reward", "reward", "on held-out prompts"),)
    meanings: ClassVar = {"reward": "mean over completions", "reward/*": "mean of a function"}
    curves: ClassVar = (Curve(("reward",), "Reward"), Curve(("reward/*",), "Functions"), Curve(("entropy",), "Entropy"))


@pytest.fixture
def policy(monkeypatch):
    monkeypatch.setitem(table.OBJECTIVES, "policy", Policy)


def test_a_family_of_metrics_is_one_plot(policy, tmp_path):
    functions = [f"reward/{name}" for name in ("a", "b", "c", "d", "e_f", "<g>", "h", "i")]
    page = run(tmp_path, "policy", ("reward", *functions), ("reward", functions[3]))
    found = figures(page)
    assert [*found][:3] == ["Reward", "Functions", "Learning rate"]  # the first one is large; nothing has an entropy
    assert len(found["Reward"].all("svg")) == 2 and "mean over completions" in found["Reward"].text
    names = key(found["Functions"])
    assert sorted(names) == sorted(["a", "b", "c", "d", "e f", "<g>", "h", "i", "validation"])
    looks = [
        (i.attributes["class"], i.attributes["style"]) for i in found["Functions"].all("i") if "style" in i.attributes
    ]
    assert len({*looks}) == 8
    # A thin line and a smoothed one for each; only one has dots, in its colour.
    (svg,) = found["Functions"].all("svg")
    strokes = [len(lines(svg, color, dashed)) for color in ("accent", "third") for dashed in (False, True)]
    assert strokes == [2, 2, 2, 0]
    drawn = [color for color in ("accent", "second", "third", "fourth", "fifth", "sixth") if dots(svg, color)]
    assert len(drawn) == 1
    tiles = [one.text for one in page.all("dt")]
    assert tiles == ["Validation reward", "Train reward", "Steps"]  # what is not known has no tile


def test_the_headline_compares_with_the_start_and_with_chance(tmp_path):
    page = run(tmp_path, "preference", (), ("accuracy", "loss"))
    bars = page.all("div", "bars")[0]
    assert [one.text for one in bars.all("span")] == ["at the start", "0.500", "this model", "0.580", "chance", "0.500"]
    widths = [float(one.attributes["style"].removeprefix("width:").removesuffix("%")) for one in bars.all("i")]
    np.testing.assert_allclose(widths, [100 * 0.5 / 0.58, 100, 100 * 0.5 / 0.58], atol=0.06)
    assert page.all("div", "figure")[0].text == "0.580"


def test_a_later_evaluation_of_all_rows_is_this_model(tmp_path):
    page = run(tmp_path, "preference", (), ("accuracy", "loss"), validation={"accuracy": 0.75})
    assert page.all("div", "figure")[0].text == "0.750" and "At the start only 32 rows" in page.text


def test_a_run_that_began_without_a_model_has_no_start(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(4, {"validation/loss": 3.0})
    writer.write(8, {"validation/loss": 2.0})
    writer.close()
    assert "at the start" not in report(tmp_path).text


def test_negative_figures_have_bars_from_the_lowest(policy, tmp_path):
    writer = metrics.Writer(tmp_path)
    for step, value in ((0, -3.0), (5, -1.0)):
        writer.write(step, {"validation/reward": value})
    writer.close()
    (tmp_path / "config.json").write_text(json.dumps({"objective": {"name": "policy"}}))
    bars = report(tmp_path).all("div", "bars")[0].all("i")
    widths = [float(one.attributes["style"].removeprefix("width:").removesuffix("%")) for one in bars]
    np.testing.assert_allclose(widths, [0, 200 / 3], atol=0.06)


def test_the_table_of_evaluations_explains_metrics(policy, tmp_path):
    page = run(
        tmp_path,
        "policy",
        (),
        ("reward", "reward/a", "loss"),
        best={"metric": "validation/reward", "value": 1, "step": 4},
    )
    rows = [[cell.text for cell in row.all("th") + row.all("td")] for row in sections(page)["Evaluations"].all("tr")]
    assert rows[0] == ["held out", "step 0", "step 4 (best)", "step 8"]
    assert rows[1:] == [
        ["rewardmean over completions", "0.5", "0.54", "0.58"],
        ["reward/amean of a function", "0.5", "0.58", "0.66"],
        ["loss", "0.5", "0.62", "0.74"],
    ]


def test_families():
    names = ["reward", "reward/a", "reward/b/c", "rewards", "kl"]
    assert family("reward/*", names) == ["reward/a", "reward/b/c"] and family("reward", names) == ["reward"]
    words = {"reward/*": "any", "reward/b": "this", "reward": "sum"}
    assert [meaning(name, words) for name in ("reward/b", "reward/c", "reward", "other")] == ["this", "any", "sum", ""]


@pytest.mark.parametrize("name", table.OBJECTIVES)
def test_what_objectives_declare(name):
    """Headlines have a direction, and plots say what they show."""
    objective = table.OBJECTIVES[name]
    for headline in objective.headlines:
        lower_is_better(headline.metric)
    titles = [curve.title for curve in objective.curves]
    assert len({*titles}) == len(titles)
    for curve in objective.curves:
        assert curve.meaning or len(curve.metrics) == 1
        assert curve.meaning or not objective.meanings or meaning(curve.metrics[0], objective.meanings)
