"""What tests against TRL share: a model in both frameworks, a tokenizer, and TRL's settings."""

import importlib

import jax
import torch
import transformers
from flax import nnx

from data.tokens import hub as tokenizer_files
from data.tokens import tokenizer as tokenizers
from model import architectures
from model.interop import registry
from model.interop.files.folder import Folder

SHAPE = dict(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SHAPE |= dict(intermediate_size=48, max_position_embeddings=64, bos_token_id=0, eos_token_id=0)


def theirs(kind, seed: int):
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(transformers.LlamaConfig(**SHAPE, num_labels=1, pad_token_id=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def ours(model, folder):
    """Returns our model with the parameters of transformers' model."""
    model.save_pretrained(folder)
    family, config = registry.read_config(Folder(folder))
    return registry.read(Folder(folder), family, jax.eval_shape(lambda: architectures.make(config, nnx.Rngs(0))))


def tokenizer(folder):
    """Returns the tokenizer of both."""
    for name, text in tokenizer_files.files(tokenizers.train([], "byte", specials=["<pad>"])).items():
        (folder / name).write_text(text)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    found.pad_token = "<pad>"
    return found


def dataset(rows):
    return importlib.import_module("datasets").Dataset.from_list(rows)


def settings(kind, folder, rows, **fields):
    fields |= dict(report_to=[], use_cpu=True, bf16=False, per_device_train_batch_size=rows, disable_tqdm=True)
    return kind(output_dir=str(folder), gradient_checkpointing=False, **fields)
