"""Methods of parameter-efficient fine-tuning by name: the fields of config.adapt, and a suitable learning rate.

lora      low-rank adapters over a frozen model (arXiv:2106.09685)
qlora     LoRA over a base in 4 bits: NF4 with double quantization, computed in bfloat16 (arXiv:2305.14314)
adapter   bottleneck adapters in each block of a frozen model (arXiv:1902.00751, arXiv:2005.00247)
prompt    trained vectors before the text, nothing inside the model (prompt tuning, arXiv:2104.08691)
"""

from ml_collections import ConfigDict

LORA: dict = dict(
    method="lora",
    rank=8,  # inner dimension of each adapter
    alpha=16.0,  # the adapter's output is multiplied by alpha / rank
    dropout=0.0,  # on the adapter's input, in training only
    rank_stabilized=False,  # True multiplies by alpha / sqrt(rank) instead (rsLoRA, arXiv:2312.03732)
    # (pattern, whether matching weights get an adapter) pairs over weights' names; the first match decides.
    targets=(("attention|cross|feed_forward", True), (".*", False)),
)
_QLORA = dict(
    LORA,
    rank=64,
    base="nf4",  # how the frozen weights are stored: nf4 (4 bits), int8 (8 bits), float (not quantized)
    double_quantization=True,  # quantizes the scales of the nf4 blocks too
)
_ADAPTER = dict(
    method="adapter",
    # pfeiffer: one adapter per block, after the feed-forward (arXiv:2005.00247). houlsby: another one after attention
    # (arXiv:1902.00751).
    placement="pfeiffer",
    reduction=16,  # the bottleneck has embed_dim / reduction features
    activation="relu",
)
_PROMPT = dict(
    method="prompt",
    length=20,  # number of trained vectors
    init_text="",  # text whose tokens are the initial vectors, repeated or cut to `length`; empty: random tokens
)

METHODS = {"lora": (LORA, 1e-3), "qlora": (_QLORA, 2e-4), "adapter": (_ADAPTER, 1e-3), "prompt": (_PROMPT, 0.3)}


def tuned(config: ConfigDict, method: str) -> ConfigDict:
    """Changes `config` to train with a method of METHODS over the model in config.init_from, and returns it."""
    block, config.optimizer.learning_rate = METHODS[method]
    config.adapt = ConfigDict(block)
    config.optimizer.weight_decay = 0.0
    if method == "qlora":
        config.model.param_dtype = "bfloat16"  # for the frozen weights that are not quantized: embedding tables, norms
    return config
