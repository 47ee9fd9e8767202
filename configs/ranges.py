"""What the numbers of a config may be: a line for each field of base.py, and of the blocks that other configs add.

    'int [1, inf)'        a whole number from 1 on
    'float [0, 1)'        a number from 0 to below 1; nan and inf are never allowed
    'int -1 or [1, inf)'  or this one value
    a name with []        the number of each pair of a list, ((pattern, number), ...)

A run with a field outside of its range is refused before it begins (launch/ranges.py). Ranges of the other fields of
`model` stand beside their defaults in model/config.py and model/parts.py. A test fails where a numeric field has none.
"""

RANGES = {
    "seed": "int [0, 4294967295]",  # jax drops what is beyond 32 bits, and two seeds would be one
    "steps": "int [1, 2147483647]",  # counted in 32 bits
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
    # methods.py
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
    "objective.z_loss": "float [0, inf)",
    "objective.label_smoothing": "float [0, 1)",
    "objective.balance_loss": "float [0, inf)",
    "objective.router_z_loss": "float [0, inf)",
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
    "grade.rows": "int [0, inf)",
    "grade.max_new_tokens": "int [1, inf)",
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
