"""Methods of tuning a frozen model, by name: the `adapt` block of a config, and a suitable learning rate.

lora      low-rank adapters (arXiv:2106.09685)
qlora     the same over a model in 4 bits: NF4 with double quantization, bfloat16 computation (arXiv:2305.14314)
adapter   bottleneck adapters in each block (arXiv:1902.00751, arXiv:2005.00247)
prompt    a few vectors before the text (arXiv:2104.08691)
"""

from ml_collections import ConfigDict

LORA = dict(method="lora", rank=8, alpha=16.0, dropout=0.0, rank_stabilized=False)
# Which weights get an adapter, by patterns over their names; the first match decides.
LORA["targets"] = (("attention|cross|feed_forward", True), (".*", False))
_QLORA = dict(LORA, rank=64, base="nf4", double_quantization=True)  # base: nf4, int8, float
_ADAPTER = dict(method="adapter", placement="pfeiffer", reduction=16, activation="relu")
_PROMPT = dict(method="prompt", length=20)
_PROMPT["init_text"] = ""  # text that initializes the vectors, repeated or cut; empty: vectors of random tokens

METHODS = {"lora": (LORA, 1e-3), "qlora": (_QLORA, 2e-4), "adapter": (_ADAPTER, 1e-3), "prompt": (_PROMPT, 0.3)}


def tuned(config: ConfigDict, method: str) -> ConfigDict:
    """Changes the config to train with `method`, one of METHODS, over the model of config.init_from; returns it."""
    block, config.optimizer.learning_rate = METHODS[method]
    config.adapt = ConfigDict(block)
    config.optimizer.weight_decay = 0.0
    if method == "qlora":
        config.model.param_dtype = "bfloat16"  # for frozen parameters that are not quantized: tables, norms
    return config
