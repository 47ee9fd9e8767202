"""Published sizes."""

SIZES = {
    "tiny": dict(vocab_size=0, num_layers=4, embed_dim=256, num_heads=4, num_kv_heads=2, mlp_dim=704, max_length=512, norm="rmsnorm", position="rotary", activation="silu", gated=True, bias=False, tied=True),
}
