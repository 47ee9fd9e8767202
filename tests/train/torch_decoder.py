"""A LLaMA-style decoder and its training in PyTorch float64, written from the papers, as a golden reference."""

import numpy as np
import torch


def losses_in_pytorch(config, weights, batches, rate):
    """Returns the losses of AdamW (0.9, 0.95, decay 0.1 on matrices, clip 1.0) from `weights`, our nested dict."""
    f64 = lambda a: torch.nn.Parameter(torch.tensor(np.asarray(a), dtype=torch.float64))
    blocks, params = weights["stack"]["segments"][0][0], {}
    for layer in range(config.num_layers):
        for part, names in blocks.items():
            for name, value in names.items():
                params[f"{layer}.{part}.{name}"] = f64(value[layer])
    table, norm = f64(weights["inputs"]["tokens"]["table"]), f64(weights["norm"]["scale"])
    params |= {"table": table, "norm.scale": norm}
    decayed = [p for name, p in params.items() if "norm" not in name]
    plain = [p for name, p in params.items() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8)

    def rms(x, scale):
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + config.norm_epsilon) * scale

    def rotate(x):  # [B, T, N, H]
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[1])[:, None] * config.rope.theta ** (-torch.arange(half) / half)
        turned = (
            torch.view_as_complex(torch.stack([x[..., :half], x[..., half:]], -1)) * torch.exp(1j * angles)[:, None]
        )
        return torch.cat([turned.real, turned.imag], -1)

    def forward(tokens):
        x = table[tokens]
        causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        for layer in range(config.num_layers):
            get = lambda name, layer=layer: params[f"{layer}.{name}"]
            h = rms(x, get("attention_norm.scale"))
            q = torch.einsum("btd,dkgh->btkh", h, get("attention.query"))  # here each key head has one query head
            k, v = (torch.einsum("btd,dkh->btkh", h, get(f"attention.{name}")) for name in ("key", "value"))
            scores = torch.einsum("btkh,bskh->bkts", rotate(q), rotate(k)) / config.head_dim**0.5
            probabilities = scores.masked_fill(~causal, -torch.inf).softmax(-1)
            y = torch.einsum("bkts,bskh->btkh", probabilities, v)
            x = x + torch.einsum("btkh,kghd->btd", y, get("attention.out"))
            h = rms(x, get("feed_forward_norm.scale"))
            hidden = torch.nn.functional.silu(h @ get("feed_forward.gate")) * (h @ get("feed_forward.up"))
            x = x + hidden @ get("feed_forward.down")
        return rms(x, norm) @ table.T

    losses = []
    for batch in batches:
        logits = forward(torch.tensor(batch["tokens"]).long())
        targets, token_weights = torch.tensor(batch["targets"]).long(), torch.tensor(batch["weights"]).double()
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (nll * token_weights.flatten()).sum() / token_weights.sum()
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(params.values()), 1.0)
        adamw.step()
        losses.append(loss.item())
    return losses
