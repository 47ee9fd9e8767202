"""Builds the tables of released checkpoints: a row of values for each size."""


def released(model_type: str, names: str, shared: dict, sizes: dict[str, tuple]) -> dict[str, dict]:
    """A config for each size; `names` are those of its values, after which may come a dict of further ones."""
    configs, names = {}, names.split()
    for size, values in sizes.items():
        further = values[len(names)] if len(values) > len(names) else {}
        own = dict(zip(names, values[: len(names)], strict=True))
        configs[size] = {"model_type": model_type, "initializer_range": 0.02} | shared | own | further
    return configs
