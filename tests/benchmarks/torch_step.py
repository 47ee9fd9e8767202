"""Trains a model of transformers on random tokens in PyTorch, as the reference for the speed of our training step.

This is a worker process. It prints {"compile_seconds", "trained_parameters"}; then, for each number that it reads from
stdin, it takes that many steps and prints the seconds of each as JSON. Sizes, AdamW (fused), clipping and dtypes are
those of configs/benchmark.py; there is no dropout. With `lora`, only peft's low-rank adapters train (rank 8, on all
linear layers).

    python tests/benchmarks/torch_step.py small float32 compile
    python tests/benchmarks/torch_step.py llama float32 compile lora
"""

import json
import sys
import time

import torch
import transformers

SIZES = {  # layers, width, heads, vocabulary, batch, length
    "small": (6, 384, 6, 8192, 16, 256),
    "llama": (6, 384, 6, 8192, 16, 256),
    "gpt2": (12, 768, 12, 50304, 4, 256),
}
LLAMA_HIDDEN = 1024


def made(size: str):
    layers, width, heads, vocabulary, _, _ = SIZES[size]
    if size == "llama":
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            max_position_embeddings=1024,
            hidden_size=width,
            intermediate_size=LLAMA_HIDDEN,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            use_cache=False,
            attn_implementation="sdpa",
        )
        return transformers.LlamaForCausalLM(config)
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
    return transformers.GPT2LMHeadModel(config)


def main(size: str, dtype: str, mode: str, method: str = "") -> None:
    _, _, _, vocabulary, batch, length = SIZES[size]
    torch.manual_seed(0)
    model = made(size)
    if method == "lora":
        import peft  # imported here, because the other modes work without peft

        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    trained = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
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
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        loss.item()

    start = time.perf_counter()
    step()
    facts = {"compile_seconds": time.perf_counter() - start, "trained_parameters": sum(p.numel() for p in trained)}
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
