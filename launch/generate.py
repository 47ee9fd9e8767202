"""Continue prompts with a trained model.

    python -m launch.generate --workdir=DIR --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --top_p=0.95

Several --prompt are one batch; where there is an encoder, it reads them. Writes each prompt with its continuation (of
an encoder-decoder the continuation alone) to stdout, so that it can be piped.
"""

from launch import runtime

runtime.configure()

import jax
from absl import flags

from launch import restore
from launch.checking import checking
from model import axes
from model.decode import sampling
from model.decode.generate import check, generate

_WORKDIR = flags.DEFINE_string("workdir", None, "A run of launch.train.")
_PROMPT = flags.DEFINE_multi_string("prompt", [""], "Text to continue; may be given several times.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Continuations of each prompt.", lower_bound=1)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 100, "At most so many tokens; the end of a document ends it.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0: always the most likely token. 1: the model's distribution.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from the k most likely tokens only; 0: from all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens that together have this probability; 1: all.")
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")


def main() -> None:
    with checking("flags"):
        settings = sampling.settings(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    mesh, model, tokenizer = restore.restore_for_inference(_WORKDIR.value)
    texts = [text for text in _PROMPT.value for _ in range(_NUM_SAMPLES.value)]
    reads = model.config.architecture == "encoder_decoder"
    inputs = tokenizer.inputs(texts, reads)
    with checking("flags"):
        check(inputs["prompts"], _MAX_NEW_TOKENS.value, tokenizer.vocab_size, model.config, inputs["sources"])
    with axes.use_mesh(mesh):
        result = generate(
            model,
            key=jax.random.key(_SEED.value),
            max_new_tokens=_MAX_NEW_TOKENS.value,
            settings=settings,
            eos_id=tokenizer.special.end,
            vocab_size=tokenizer.vocab_size,
            **inputs,
        )
    rows = zip(inputs["prompts"], result.tokens, result.lengths, strict=True)
    for number, (prompt, tokens, length) in enumerate(rows, 1):
        if len(texts) > 1:
            print(f"--- {number} of {len(texts)} ---")
        print(tokenizer.decode_spans(tokens[:length]) if reads else tokenizer.decode([*prompt, *tokens[:length]]))


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    runtime.run(main)
