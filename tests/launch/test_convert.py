"""Tests the import and export of checkpoint folders, and the export of models that were trained here."""

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from data.tokens import tokenizer
from launch import convert as module
from launch.program.checking import ConfigError
from launch.run import restore
from launch.run.workdirs import Workdir
from model import architectures, axes
from model.attention import masks
from model.decode.generate import generate
from model.interop.files.folder import Folder
from tests.launch.conftest import ARCHITECTURES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    words = tokenizer.train(["some text, " * 50], "byte")
    # The eight devices do not divide 36; six of them do.
    settings = dict(vocab_size=words.vocab_size + 7, hidden_size=36, num_hidden_layers=2, num_attention_heads=4)
    settings |= dict(head_dim=8)
    settings |= dict(intermediate_size=48, max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=1)
    settings["eos_token_id"] = words.eot_id
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.save_pretrained(path, max_shard_size="20KB")
    words.save(path / "tokenizer.json")
    return path


def convert(workdir, from_hf=None, to_hf=None):
    """Does what the command does in this process, with its eight devices; mistakes raise errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", jax.local_devices)
        module.import_folder(from_hf, workdir) if from_hf else module.export(workdir, to_hf)


def command(**flags):
    """Runs the command with eight devices."""
    words = [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.run([sys.executable, "-m", "launch.convert", *words], capture_output=True, text=True)


def test_in_and_out(folder, tmp_path):
    done = command(from_hf=folder, workdir=tmp_path / "run")
    assert ": llama, 3" in done.stdout, done.stderr
    mesh, model, words = restore.for_inference(Workdir(tmp_path / "run"))
    with axes.use_mesh(mesh):
        assert generate(model, [words.encode("some")], jax.random.key(0), max_new_tokens=3).lengths == [3]
    assert command(workdir=tmp_path / "run", to_hf=tmp_path / "out").returncode == 0
    old, new = Folder(folder), Folder(tmp_path / "out")
    assert old.tensors.keys() == new.tensors.keys()
    for name in old.tensors:
        np.testing.assert_array_equal(old.read(name), new.read(name))
    assert tokenizer.load(tmp_path / "out" / "tokenizer.json").encode("some") == words.encode("some")
    with pytest.raises(ConfigError, match="has no data"):
        _ = Workdir(tmp_path / "run").prepared
    with pytest.raises(ConfigError, match="holds a run already"):
        convert(tmp_path / "run", from_hf=folder)
    for target in ("to_hf", "to_peft"):  # an error before the workdir is read
        full = command(workdir=tmp_path / "nothing", **{target: tmp_path / "out"})
        assert full.stderr == f"error: {tmp_path / 'out'} exists and is not empty; choose another folder or remove it\n"
    absent = command(from_hf=tmp_path / "nothing", workdir=tmp_path / "new")
    assert absent.returncode == 1 and "Traceback" not in absent.stderr
    assert absent.stderr.startswith("error: there is no folder") and not (tmp_path / "new").exists()


def test_bfloat16_stays_bfloat16(folder, tmp_path):
    """Also in the workdir, where float32 would take twice the space."""
    shutil.copytree(folder, tmp_path / "narrow")
    for file in (tmp_path / "narrow").glob("*.safetensors*"):
        file.unlink()
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    convert(tmp_path / "run", from_hf=tmp_path / "narrow")
    assert Workdir(tmp_path / "run").architecture.param_dtype == "bfloat16"
    convert(tmp_path / "run", to_hf=tmp_path / "out")
    old, new = Folder(tmp_path / "narrow"), Folder(tmp_path / "out")
    for name in old.tensors:
        assert old.read(name).dtype == new.read(name).dtype == jnp.bfloat16
        np.testing.assert_array_equal(old.read(name), new.read(name))


@pytest.mark.xdist_group("pretrain_decoder")
def test_a_model_trained_here_loads_in_transformers(trained, tmp_path):
    convert(trained("decoder"), to_hf=tmp_path / "out")
    mesh, model, words = restore.for_inference(Workdir(trained("decoder")))
    tokens = np.arange(12, dtype=np.int32)[None] + 40
    with axes.use_mesh(mesh):
        ours = model.logits(jnp.asarray(tokens))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs(torch.tensor(tokens).long()).logits, atol=2e-4)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", split_special_tokens=True)
    for text in ("the quick", "", " Café\n\n<|endoftext|> 東京"):
        assert again.encode(text) == words.prompts([text])[0]
    assert again.decode(again.encode("the  quick"), skip_special_tokens=True) == "the  quick"
    prompt = words.prompts(["the quick"])
    with axes.use_mesh(mesh):
        expected = generate(model, prompt, jax.random.key(0), max_new_tokens=12, eos_id=words.special.end).tokens[0]
    greedy = theirs.generate(torch.tensor(again.encode("the quick"))[None], max_new_tokens=12, do_sample=False)[0]
    np.testing.assert_array_equal(expected, greedy[len(prompt[0]) :])


_TARGET = dict(decoder_input_ids=torch.arange(5)[None] + 50)
# config: (transformers' class, its inputs besides tokens)
CLASSES = {
    "moe": (transformers.MixtralForCausalLM, {}),
    "encoder": (transformers.BertForMaskedLM, {}),
    "encdec": (transformers.T5ForConditionalGeneration, _TARGET),
}


@pytest.mark.parametrize("name", [param for param in ARCHITECTURES if param.values[0] in CLASSES])
def test_other_architectures_trained_here(name, trained, tmp_path):
    kind, others = CLASSES[name]
    convert(trained(name), to_hf=tmp_path / "out")
    mesh, model, words = restore.for_inference(Workdir(trained(name)))
    tokens = torch.arange(12)[None] + 40
    with torch.no_grad():
        theirs = kind.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()(tokens, **others).logits
    read = [jnp.asarray(rows.numpy(), jnp.int32) for rows in (tokens, *others.values())]
    with axes.use_mesh(mesh):
        source = {"source": architectures.Source(read[0], *masks.default_segments(read[0]))} if others else {}
        ours = model.logits(read[-1], **source)
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-4)
    settings = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert settings.mask_token_id == words.mask_id


def test_special_tokens_survive_import_and_export(folder, tmp_path):
    """An end token of generation_config.json ends the answers of launch.generate, and is in the export."""
    source = tmp_path / "hf"
    shutil.copytree(folder, source)
    (source / "generation_config.json").write_text('{"eos_token_id": [0, 77], "pad_token_id": 5}')
    (source / "tokenizer_config.json").write_text('{"bos_token": null, "eos_token": "<|endoftext|>"}')
    convert(tmp_path / "run", from_hf=source)
    words = Workdir(tmp_path / "run").tokenizer
    assert words.prompts(["a"]) == [words.encode("a")] and words.special.end == (0, 77)
    convert(tmp_path / "run", to_hf=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["eos_token_id"], written["pad_token_id"], written["bos_token_id"]) == ([0, 77], 5, 1)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.eos_token_id == [0, 77]


def test_a_t5_reads_and_writes_as_in_transformers(tmp_path):
    """The encoder reads </s> after the text, and the decoder begins with the family's start token."""
    words = tokenizer.train([], "byte", specials=["<pad>", "</s>"])
    backend = Backend.from_str(words.to_json())
    backend.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 2)])
    shape = dict(vocab_size=288, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    config = transformers.T5Config(**shape, decoder_start_token_id=1, pad_token_id=1, eos_token_id=2)
    source, workdir = tmp_path / "hf", tmp_path / "run"
    transformers.set_seed(0)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    theirs.save_pretrained(source)
    backend.save(str(source / "tokenizer.json"))
    convert(workdir, from_hf=source)
    (workdir / "config.json").write_text((workdir / "config.json").read_text().replace("bfloat16", "float32"))
    mesh, model, ours = restore.for_inference(Workdir(workdir))
    with axes.use_mesh(mesh):
        inputs = ours.inputs(["hello there"], encoder=True)
        out = generate(model, key=jax.random.key(0), max_new_tokens=8, eos_id=ours.special.end, **inputs)
    expected = theirs.generate(torch.tensor([backend.encode("hello there").ids]), max_new_tokens=8, do_sample=False)
    assert [1, *out.tokens[0, : out.lengths[0]]] == expected[0].tolist()


def test_a_tokenizer_that_does_not_fit(folder, tmp_path):
    """The error is one line and no workdir is created; tests/data/tokens tests what data/tokens/hub.py refuses."""
    source = tmp_path / "hf"
    shutil.copytree(folder, source)
    (source / "tokenizer.json").rename(source / "tokenizer.model")
    done = command(from_hf=source, workdir=tmp_path / "run")
    assert done.stderr.startswith(f"error: {source} has no tokenizer (only tokenizer.model"), done.stderr
    (source / "tokenizer.model").rename(source / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 200}
    (source / "config.json").write_text(json.dumps(config))
    words = f"{source}: the tokenizer has 257 tokens, but config.json says vocab_size 200"
    with pytest.raises(ConfigError, match=re.escape(words)):
        convert(tmp_path / "run", from_hf=source)
    assert not (tmp_path / "run").exists()


def test_a_folder_where_a_workdir_is_wanted(folder):
    with pytest.raises(ConfigError, match=rf"{folder} is a checkpoint folder .*not a workdir; .*--from_hf={folder}"):
        restore.for_inference(Workdir(folder))


def test_names_of_classes_in_the_order_of_their_numbers(folder, tmp_path):
    """Also if config.json lists them in another order, and if the names are numbers themselves."""
    names = [str(2 * number) for number in range(12)]
    config = transformers.LlamaConfig.from_pretrained(folder, num_labels=12, pad_token_id=5)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "hf")
    shutil.copy(folder / "tokenizer.json", tmp_path / "hf")
    given = json.loads((tmp_path / "hf" / "config.json").read_text())
    given["id2label"] = {str(number): names[number] for number in (10, 2, 11, 0, 1, 3, 9, 8, 7, 6, 5, 4)}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(given))
    convert(tmp_path / "run", from_hf=tmp_path / "hf")
    assert Workdir(tmp_path / "run").labels["names"] == names
    convert(tmp_path / "run", to_hf=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(written["id2label"].items()) == [(str(number), name) for number, name in enumerate(names)]
    assert list(written["label2id"].items()) == [(name, number) for number, name in enumerate(names)]
    read = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert list(read.id2label.items()) == list(enumerate(names)) and read.label2id == written["label2id"]
    assert not (tmp_path / "out" / "generation_config.json").exists()
