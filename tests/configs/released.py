"""Builds the tables of released checkpoints from one row of values per size."""


def released(model_type: str, names: str, shared: dict, sizes: dict[str, tuple]) -> dict[str, dict]:
    """Returns a config for each size. `names` are the fields of a row's values; a dict at its end has other fields."""
    configs, names = {}, names.split()
    for size, values in sizes.items():
        further = values[len(names)] if len(values) > len(names) else {}
        own = dict(zip(names, values[: len(names)], strict=True))
        configs[size] = {"model_type": model_type, "initializer_range": 0.02} | shared | own | further
    return configs
