"""The search space of a sweep over configs/lora.py.

    python -m launch.sweep --config=configs/lora.py --search=configs/searches/lora.py --trials=20 --workdir=DIR \\
        --config.init_from=DIR --config.data.path=instructions.json

launch/sweeps/search.py describes the kinds of ranges; a field that the config lacks is an error.
"""


def get_search() -> dict[str, tuple]:
    return {
        "optimizer.learning_rate": ("log", 1e-5, 1e-2),
        "optimizer.weight_decay": ("float", 0.0, 0.1),
        "adapt.rank": ("choice", 4, 8, 16, 32),
        "adapt.dropout": ("float", 0.0, 0.2, 0.05),
    }
