"""nanoGPT's small character-level setting for CPUs, on the text file after the colon, with our own learning rate.

    python -m launch.train --config=configs/shakespeare_char.py:input.txt --workdir=runs/shakespeare

4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 steps, no dropout; the last tenth of the text is held out.
"""

from ml_collections import ConfigDict

from configs import pretrain_decoder
from configs.sizes import SIZES


def get_config(path: str = "input.txt") -> ConfigDict:
    config = pretrain_decoder.get_config("gpt2")
    config.steps = 2000
    config.batch_size = 12
    config.model.update(SIZES["gpt2"], vocab_size=0, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=4)
    config.model.update(head_dim=32, mlp_dim=512, max_length=64, dtype="float32")
    config.model.update(qkv_bias=False, out_bias=False, mlp_bias=False)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100, final=0.1, beta2=0.99)
    config.data.update(sources=((f"files:{path}", 1.0),), validation=0.1, split="tail", seq_len=64)
    config.data.tokenizer.update(kind="char", vocab_size=0)
    config.log_every, config.eval_every, config.eval_rows, config.checkpoint_every = 100, 1000, 0, 2000
    return config
