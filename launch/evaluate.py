"""Evaluate a run on all that it held out: text beside compressors, labels beside the most frequent one. Sample from it.
Both go into its report.

python -m launch.evaluate --workdir=DIR --prompt="def main(" --prompt="class "
"""

if __package__ in (None, ""):  # as a script, launch/ would be the first place where modules are looked for
    raise SystemExit("start it from the checkout as: python -m launch.evaluate")

from launch import runtime

runtime.configure()

from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags

from launch import build, early_stopping, evaluation, prompts, restore, workdirs
from launch.checking import checking
from model import axes
from model.decode.generate import check, generate
from model.decode.sampling import settings
from train import report, summary
from train.evals.compressors import compressed_bits_per_byte

_WORKDIR = flags.DEFINE_string("workdir", None, "A run of launch.train.")
_STEP = early_stopping.define_step()
_PROMPTS = flags.DEFINE_multi_string("prompt", [], "What to continue; may stand several times.")
_TOKENS = flags.DEFINE_integer("max_new_tokens", 100, "Length of each sample.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Of the samples; 0 takes the likeliest token.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 0.95, "Nucleus of the samples.", lower_bound=0, upper_bound=1)


def main() -> None:
    workdir = Path(_WORKDIR.value).absolute()
    config, prepared = workdirs.recorded_config(workdir), workdirs.adopted(workdir)
    mesh, model, tokenizer = restore.restore_for_inference(workdir, build.mesh(config), _STEP.value)
    with axes.use_mesh(mesh):
        given = None
        if _PROMPTS.value:
            reads = model.config.architecture == "encoder_decoder"
            given = prompts.inputs(config, tokenizer, _PROMPTS.value, reads)
            known = model.inputs.tokens.rows
            with checking("--prompt, --max_new_tokens"):
                check(given.prompts, _TOKENS.value, tokenizer.vocab_size, model.config, given.sources, known)
        eval_step, corruption = build.steps(config, None)[1], build.corruption(config, prepared)
        figures = evaluation.evaluation(config, prepared, corruption, eval_step, build.put(mesh))(model, None)
        samples = []
        if given:
            out = generate(
                model,
                key=jax.random.key(config.seed),
                max_new_tokens=_TOKENS.value,
                settings=settings(_TEMPERATURE.value, top_p=_TOP_P.value),
                eos_id=given.ends,
                vocab_size=tokenizer.vocab_size,
                prompts=given.prompts,
                sources=given.sources,
            )
            texts = [given.continuation(tokenizer, ids[:n]) for ids, n in zip(out.tokens, out.lengths, strict=True)]
            asked = [prompt + "\n" * given.answers for prompt in _PROMPTS.value]
            samples = [{"prompt": p, "text": t} for p, t in zip(asked, texts, strict=True)]
    figures = {name.removeprefix("validation/"): value for name, value in figures.items()}
    # Where not the whole text is predicted, compressors are no measure; what token frequencies reach is.
    whole = "bits_per_byte" in figures
    compressors = compressed_bits_per_byte(prepared.validation_texts()) if whole else {}
    summary.update(workdir, {"validation": figures, "compressors": compressors, "samples": samples})
    for sample in samples:
        print(f"--- {sample['prompt']}{sample['text']}\n")
    print(
        "\n".join(
            _labelled(figures, prepared.labels) if prepared.labels else _predicted(figures, prepared, compressors)
        )
    )
    print(f"report: {report.write_report(workdir)}")


def _predicted(figures: dict, prepared, compressors: dict) -> Iterator[str]:
    if "bits_per_byte" in figures:
        yield f"held-out text: {prepared.validation_bytes:,} bytes, never trained on"
        for name, value in {"this model": figures["bits_per_byte"], **compressors}.items():
            yield f"  {name:12} {value:6.3f} bits per byte"
    else:
        yield "what was held out, never trained on:"
    yield f"  loss {figures['loss']:.4f} nats a token, perplexity {figures['perplexity']:.2f}"
    yield f"  token frequencies alone: {figures['unigram']:.4f} nats a token"
    yield from (f"  {name} {value:.4f}" for name, value in figures.items() if "/" in name)


def _labelled(figures: dict, labels: dict) -> Iterator[str]:
    yield "labels that were held out, never trained on:"
    meanings = {"macro_f1": "mean F1 of the classes", "matthews": "Matthews correlation", "loss": "nats a label"}
    meanings |= {"majority_accuracy": "accuracy of always saying the most frequent class of training"}
    meanings |= {"mean_mse": "mean squared error of always saying the mean of training", "pearson": "correlation"}
    if "names" in labels:
        meanings["f1"] = f"F1 of {labels['names'][1]!r}"
    else:
        meanings["loss"] = "the mean squared error"
    for name, value in figures.items():
        yield f"  {name:18} {value:.4f}  {meanings.get(name, '')}".rstrip()


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    runtime.run(main)
