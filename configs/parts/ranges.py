"""The allowed range of every numeric field of a config, including fields that single experiments add.

    'int [1, inf)'        an integer of at least 1
    'float [0, 1)'        a number of at least 0 and less than 1; nan and inf are never allowed
    'int -1 or [1, inf)'  an integer of at least 1, or -1
    a name ending in []   applies to the number in each pair of a list ((pattern, number), ...)

A run with a field outside its range is refused before it starts (launch/run/ranges.py). Other ranges stand beside what
they belong to: those of config.model in model/config.py and model/parts.py, those of config.objective in the classes of
train/objectives/. A test fails if a numeric field has no range.
"""

RANGES = {
    "seed": "int [0, 4294967295]",  # jax drops higher bits, so larger seeds would repeat smaller ones
    "steps": "int [1, 2147483647]",  # the step counter is an int32
    "batch_size": "int [1, inf)",
    "accumulate": "int [1, inf)",
    "mesh.data": "int -1 or [1, inf)",
    "mesh.stage": "int -1 or [1, inf)",
    "mesh.fsdp": "int -1 or [1, inf)",
    "mesh.expert": "int -1 or [1, inf)",
    "mesh.context": "int -1 or [1, inf)",
    "mesh.tensor": "int -1 or [1, inf)",
    "model.vocab_size": "int [0, inf)",
    "model.num_labels": "int [0, inf)",
    # Fields of config.adapt, see methods.py.
    "adapt.rank": "int [1, inf)",
    "adapt.alpha": "float (0, inf)",
    "adapt.dropout": "float [0, 1)",
    "adapt.reduction": "int [1, inf)",
    "adapt.length": "int [1, inf)",
    "optimizer.learning_rate": "float [0, inf)",
    "optimizer.warmup_steps": "int [0, inf)",
    "optimizer.final": "float [0, 1]",
    "optimizer.beta1": "float [0, 1)",
    "optimizer.beta2": "float [0, 1)",
    "optimizer.epsilon": "float (0, inf)",
    "optimizer.weight_decay": "float [0, inf)",
    "optimizer.rates[]": "float [0, inf)",
    "optimizer.clip_norm": "float [0, inf)",
    "optimizer.correction_rate": "float [0, inf)",
    "data.sources[]": "float [0, inf)",
    "data.validation": "float [0, 1)",
    "data.seq_len": "int [1, inf)",
    "data.tokenizer.vocab_size": "int [0, inf)",
    "data.tokenizer.sentinels": "int [0, inf)",
    "data.max_bad_lines": "int [0, inf)",
    "data.augment.delete": "float [0, 1)",
    "data.augment.swap": "float [0, 1)",
    "data.augment.mask": "float [0, 1)",
    "data.corruption.rate": "float (0, 1]",
    "data.corruption.mask": "float [0, 1]",
    "data.corruption.random": "float [0, 1]",
    "data.corruption.mean_length": "float [1, inf)",
    "data.corruption.start_id": "int None or [0, inf)",
    "log_every": "int [0, inf)",
    "eval_every": "int [0, inf)",
    "eval_rows": "int [0, inf)",
    "checkpoint_every": "int [0, inf)",
    "keep_last": "int [1, inf)",
    "keep_best": "int [0, inf)",
    "early_stopping.patience": "int [0, inf)",
    "early_stopping.min_delta": "float [0, inf)",
    "early_stopping.bound": "float (-inf, inf)",
    "grade.rows": "int [0, inf)",
    "grade.max_new_tokens": "int [1, inf)",
    "safety.max_new_tokens": "int [1, inf)",
    "spike": "float [0, inf)",
    "max_bad_steps": "int [1, inf)",
    "watchdog.seconds": "float [0, inf)",
    "watchdog.first_seconds": "float [0, inf)",
    "watchdog.end_after": "float [0, inf)",
    "watchdog.barrier": "float [1, inf)",
    "check_every": "int [0, inf)",
    "profile_start": "int [0, inf)",
    "profile_steps": "int [0, inf)",
}
# The other fields of a run: names, booleans, patterns and paths. A field in neither table is refused, because no code
# reads it. Fields of config.model, config.objective, config.adapt and of kinds of examples (config.data.chat, ...) are
# not listed here: the code that reads them checks them.
OTHERS = (
    "data.sources",
    "data.path",
    "data.format",
    "data.dir",
    "data.split",
    "data.copies",
    "data.tokenizer.kind",
    "data.tokenizer.path",
    "data.tokenizer.mask",
    "data.tokenizer.chat",
    "data.corruption.kind",
    "data.corruption.whole_words",
    "optimizer.name",
    "optimizer.schedule",
    "optimizer.decay",
    "optimizer.rates",
    "optimizer.offload",
    "early_stopping.metric",
    "early_stopping.bounded",
    "grade.metrics",
    "grade.tokenizer",
    "safety.prompts",
    "init_from",
    "init_step",
    "train_only",
    "on_bad_steps",
    "verify_checkpoints",
)
