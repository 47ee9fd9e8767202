"""transformers' GPT-2 in PyTorch, trained on random tokens: what the training step is compared with.

A worker: prints {"ready": compile seconds}, then for each number read from stdin times that many steps and prints the
seconds of each as JSON. Same sizes, AdamW (fused), clipping and dtype rules as configs/benchmark.py; no dropout.

    python tests/benchmarks/torch_gpt2.py small float32 compile
"""

import json
import sys
import time

import torch
import transformers

SIZES = {  # layers, width, heads, vocabulary, batch, length
    "small": (6, 384, 6, 8192, 16, 256),
    "gpt2": (12, 768, 12, 50304, 4, 256),
}


def main(size: str, dtype: str, mode: str) -> None:
    layers, width, heads, vocabulary, batch, length = SIZES[size]
    torch.manual_seed(0)
    torch.set_num_threads(torch.get_num_threads())
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=1024,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
    )
    tokens = torch.randint(0, vocabulary, (batch, length + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss_of(inputs, targets):
        logits = model(input_ids=inputs).logits.float()
        return torch.nn.functional.cross_entropy(logits.view(-1, vocabulary), targets.view(-1))

    loss_of = torch.compile(loss_of) if mode == "compile" else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    start = time.perf_counter()
    step()
    print(json.dumps({"ready": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
