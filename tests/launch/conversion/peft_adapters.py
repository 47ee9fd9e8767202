"""Makes a small LLaMA with two adapters of peft, and greedy continuations with both libraries."""

import copy

import jax
import peft
import pytest
import torch
import transformers

from data.tokens import tokenizer
from launch import convert
from launch.conversion import adapters
from launch.run import restore
from launch.run.workdirs import Workdir
from model import axes
from model.decode.generate import generate

PROMPT, LENGTH = [40, 41, 42, 43], 8
TARGETS = {"wide": ["q_proj", "down_proj"], "narrow": r".*layers\.1\..*(v_proj|o_proj)"}


def make(root):
    """Writes a LLaMA, two adapters of peft and their workdirs to `root`; returns (root, models by adapter)."""
    torch.manual_seed(0)
    words = tokenizer.train(["some text, " * 50], "byte")
    shape = dict(vocab_size=words.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(intermediate_size=48, max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=None)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, eos_token_id=words.eot_id))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    base.eval().save_pretrained(root / "hf")
    words.save(root / "hf" / "tokenizer.json")
    models = {"base": base}
    for name, targets in TARGETS.items():
        config = peft.LoraConfig(r=3, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        models[name] = peft.get_peft_model(copy.deepcopy(base), config).eval()
        with torch.no_grad():
            for path, parameter in models[name].named_parameters():
                if "lora_" in path:
                    parameter.copy_(0.3 * torch.randn(parameter.shape))
        models[name].save_pretrained(root / f"peft {name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args, all=jax.devices: all(*args)[:1])
        convert.import_folder(root / "hf", root / "base")
        config = root / "base" / "config.json"
        config.write_text(config.read_text().replace("bfloat16", "float32"))
        for name in TARGETS:
            adapters.from_peft(root / f"peft {name}", Workdir(root / "base"), root / name)
    return root, models


def theirs(model):
    """Returns the greedy continuation of PROMPT by transformers."""
    settings = transformers.GenerationConfig(max_new_tokens=LENGTH, do_sample=False, eos_token_id=None, pad_token_id=0)
    return model.generate(torch.tensor([PROMPT]), generation_config=settings)[0, len(PROMPT) :].numpy()


def ours(workdir):
    """Returns the greedy continuation of PROMPT by the model of a workdir."""
    mesh, model, _ = restore.for_inference(Workdir(workdir))
    with axes.use_mesh(mesh):
        return generate(model, [PROMPT], jax.random.key(0), max_new_tokens=LENGTH).tokens[0]


def opened(base, *runs):
    """Returns the first arguments of adapter_bank.several."""
    return Workdir(base), [Workdir(run) for run in runs]
