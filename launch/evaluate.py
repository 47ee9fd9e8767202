"""Evaluate a run on all that it held out, sample from it, and grade its answers.

    python -m launch.evaluate --workdir=DIR --prompt="def main(" --prompt="class "
    python -m launch.evaluate --workdir=DIR --grade=bleu,chrf,rouge,exact_match,f1 --grade_rows=200 --max_new_tokens=64
    python -m launch.evaluate --workdir=DIR --against=OTHER_DIR --grade=exact_match,f1

Held-out text is compared with compressors, and labels with always predicting the most frequent one. --grade compares
the model's answers to held-out conversations and pairs of texts with the true ones, and writes them to
DIR/predictions.jsonl. --against shows how much better they are than those of another run. Figures of answers have 95 %
intervals (train/evals/intervals.py). All results go into the report.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.evaluate")

from launch.program import runtime

runtime.configure()

from pathlib import Path

import jax
from absl import flags

from data.examples import kinds
from data.examples.judged import harm_prompts
from launch.answers import against, grading, held_out, safety
from launch.answers.completer import Completer
from launch.answers.completion import Request, completed
from launch.program.checking import ConfigError, checking
from launch.run import build, companions, early_stopping, models, restore
from launch.run.workdirs import Workdir
from launch.training import sampled
from model import axes
from model.config import CHOICES
from model.decode.sampling import settings
from train.evals.compressors import compressed_bits_per_byte
from train.report import run_report, summary
from train.step import make_eval_step

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a run of launch.train. Required.", required=True)
_STEP = early_stopping.define_step()
_DTYPE = flags.DEFINE_enum("dtype", None, CHOICES["dtype"], "Dtype of parameters and computation. Default: the run's.")
_PROMPTS = flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.")
_TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "Maximum length of a sample (default: 100), of a graded answer (config.grade.max_new_tokens) and of one that is "
    "searched for refusals (config.safety.max_new_tokens).",
)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Temperature of the samples; 0: greedy.", lower_bound=0)
_TOP_P = flags.DEFINE_float(
    "top_p", 0.95, "Sample from the fewest tokens that together have this probability.", lower_bound=0, upper_bound=1
)
_GRADE = flags.DEFINE_string(
    "grade", None, "Metrics of answers, separated by commas (train/evals/text.py). Default: config.grade.metrics."
)
_GRADE_ROWS = flags.DEFINE_integer("grade_rows", 0, "Number of held-out examples of each source to grade; 0: all.")
_GRADE_TOKENIZER = flags.DEFINE_string(
    "grade_tokenizer", None, "How BLEU splits text, such as zh. Default: config.grade.tokenizer."
)
_AGAINST = flags.DEFINE_string(
    "against",
    None,
    "Workdir of another run with the same held-out examples. Its model answers them too, and the differences of all "
    "graded metrics are printed, each with its 95 % interval and p-value.",
)
_AGAINST_STEP = flags.DEFINE_string("against_step", "", "Checkpoint of --against, as for --step.")
_SAFETY = flags.DEFINE_string(
    "safety",
    None,
    "Prompts, harmful and harmless, whose answers are searched for refusals (launch/answers/safety.py); empty: none. "
    "Default: config.safety.prompts.",
)


def _grader(run: Workdir) -> grading.Grader | None:
    """Returns what grades the model; None: nothing is to be graded. It finds mistakes before the model is loaded."""
    given = {"metrics": _GRADE.value, "tokenizer": _GRADE_TOKENIZER.value, "max_new_tokens": _TOKENS.value}
    given = {name: value for name, value in given.items() if value is not None}
    wanted = grading.settings(run.config, rows=_GRADE_ROWS.value, **given)
    if not wanted.metrics:
        return None
    return grading.Grader(run.config, run.prepared, run.architecture, run.tokenizer, wanted)


def _against(grader: grading.Grader | None) -> against.Against | None:
    """Returns the model to compare with; None: there is none. It finds mistakes before a model is loaded."""
    if _AGAINST.value is None:
        return None
    if grader is None:
        raise ConfigError(
            "--against compares graded answers, but nothing is graded: add metrics, such as --grade=exact_match,f1"
        )
    return against.Against(Workdir(Path(_AGAINST.value).absolute()), grader)


def _asker(run: Workdir) -> safety.Asker | None:
    """Returns what counts the model's refusals; None: nothing does. It finds mistakes before the model is loaded."""
    config = run.config.copy_and_resolve_references()
    config.safety.prompts = config.safety.prompts if _SAFETY.value is None else _SAFETY.value
    if not config.safety.prompts:
        return None
    safety.check(config)
    new = config.safety.max_new_tokens if _TOKENS.value is None else _TOKENS.value
    return safety.Asker(config, run.architecture, run.tokenizer, harm_prompts.read(config.safety.prompts), new)


def main() -> None:
    run = Workdir(Path(_WORKDIR.value).absolute())
    workdir, config, prepared = run.path, run.config, run.prepared
    grader, asker, new = _grader(run), _asker(run), 100 if _TOKENS.value is None else _TOKENS.value
    other = _against(grader)
    with checking("--temperature, --top_p"):
        drawn = settings(_TEMPERATURE.value, top_p=_TOP_P.value)
    objective, corruption = models.objective(config, prepared.labels), build.corruption(config, prepared)
    # The reference's probabilities of all tokens give the KL divergence, which stored log-probabilities can't.
    objective = objective.beside().sampling(
        config.rollouts.temperature, config.rollouts.max_new_tokens, run.tokenizer.vocab_size
    )
    companions.check(objective, config)
    # First, so that only one of the two models is in memory at a time.
    theirs = other.answers(_AGAINST_STEP.value, _DTYPE.value) if other else []
    mesh, model, tokenizer = restore.for_inference(run, build.mesh(config), _STEP.value, _DTYPE.value)
    with axes.use_mesh(mesh):
        batch = []
        if _PROMPTS.value:
            completer = Completer(config, tokenizer, model.config, model.inputs.tokens.rows)
            with checking("--prompt, --max_new_tokens"):
                requests = [Request(text, max_new_tokens=new, settings=drawn) for text in _PROMPTS.value]
                batch = completer.completions(requests)
        recorded = run.companions(_STEP.value)
        beside = companions.found(objective, config, model, recorded).models
        eval_step = make_eval_step(objective)
        evaluate = held_out.Evaluation(config, prepared, corruption, objective, eval_step, mesh)
        if kinds.asks(config.data):  # held-out prompts have no rows
            figures = sampled.evaluated(config, prepared, tokenizer, objective, mesh, model, beside, recorded)
        else:
            figures = evaluate(model, None, beside)
        answers = list(grader.answers(model)) if grader else []
        judged = asker.answers(model) if asker else []
        new_ids = completed(model, batch, jax.random.key(config.seed)) if batch else []
        samples = [
            {"prompt": prompt + "\n" * one.answers, "text": one.text(ids)}
            for prompt, one, ids in zip(_PROMPTS.value, batch, new_ids, strict=True)
        ]
    figures = {name.removeprefix("validation/"): value for name, value in figures.items()}
    # Compressors are comparable only if the model predicts the whole text; else the unigram baseline remains.
    whole = "bits_per_byte" in figures
    compressors = compressed_bits_per_byte(prepared.validation_texts()) if whole else {}
    about = evaluate.about(compressors=compressors)
    facts = {"validation": figures, "compressors": compressors, "no_bits_per_byte": about.no_bits_per_byte}
    summary.update(workdir, facts | {"samples": samples})
    for sample in samples:
        print(f"--- {sample['prompt']}{sample['text']}\n")
    print("\n".join(objective.lines(figures, about)))
    if grader:
        grade = grader.facts(answers)
        grading.write(workdir / "predictions.jsonl", answers)
        grade |= {"against": other.facts(answers, theirs)} if other else {}
        summary.update(workdir, {"grade": grade})
        print(grading.table(grade))
        if other:
            print(against.table(grade["against"]))
    if asker:
        found = safety.facts(judged)
        safety.write(workdir / "safety_answers.jsonl", judged)
        summary.update(workdir, {"safety": found})
        print(safety.table(found))
    print(f"report: {run_report.write_report(workdir)}")


if __name__ == "__main__":
    runtime.run(main)
