"""Tests exported chat models: transformers reads the same prompt and stops at the same token."""

import json
from itertools import pairwise

import jax
import pytest
import torch
import transformers

from configs import sft
from data.batch import DataError
from data.tokens import tokenizer
from data.tokens.special import EOT
from data.tokens.templates import TEMPLATES
from launch import convert
from launch.answers.completer import Completer
from launch.answers.completion import Request, completed
from launch.run import restore
from launch.run.workdirs import Workdir
from model import axes

MESSAGES = [{"role": "user", "content": "What is it?"}]
# A model's answer, token by token; after the end token it would continue with "z".
SAYS = {"chatml": ["\n", "O", "k", "<|im_end|>"], "llama3": ["\n\n", "O", "k", "<|eot_id|>"]}
SAYS |= {"alpaca": [":", "O", "k", EOT], "gemma": ["\n", "O", "k", "<end_of_turn>"]}


def chain(tokens, size):
    """Returns a LLaMA that predicts from the last token alone: each token of the list is followed by the next one."""
    settings = dict(vocab_size=size, hidden_size=512, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings, max_position_embeddings=256))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size, 512))
        for weight in (model.model.layers[0].self_attn.o_proj.weight, model.model.layers[0].mlp.down_proj.weight):
            weight.zero_()
        model.lm_head.weight.zero_()
        for before, after in pairwise(tokens):
            model.lm_head.weight[after, before] = 1
    return model


def tuned(template, folder, system="", **data):
    """Writes a workdir like one of configs/sft.py, with a model of `chain`; `data` are fields of config.data."""
    names = sorted({name for found in TEMPLATES.values() for name in found.markers})
    words = tokenizer.train(["\n\nOk" * 9], "byte", specials=names)
    backend = tokenizer.Backend.from_str(words.to_json())
    ids = [backend.encode(text).ids[-1] for text in [*SAYS[template], "z", "z"]]
    folder.mkdir()
    chain(ids, words.vocab_size).save_pretrained(folder / "hf")
    words.save(folder / "hf" / "tokenizer.json")
    convert.import_folder(folder / "hf", folder / "run")
    record = Workdir(folder / "run").config
    words.save(folder / "run" / "tokenizer.json")  # instead of the published one
    fields = sft.get_config().data.to_dict() | {"path": "c.json", "format": "chat", "sources": ()}
    fields["chat"] = {"template": template, "system": system}
    record = record.to_dict() | {"data": fields | data}
    (folder / "run" / "config.json").write_text(json.dumps(record))
    return folder / "run"


def answered(workdir):
    """Returns (prompt, greedy answer, end tokens) as in launch.generate."""
    mesh, model, words = restore.for_inference(Workdir(workdir))
    completer = Completer(Workdir(workdir).config, words, model.config)
    (given,) = completer.completions([Request(MESSAGES[0]["content"], max_new_tokens=8)])
    with axes.use_mesh(mesh):
        (ids,) = completed(model, [given], jax.random.key(0))
    return given.prompt, ids, given.ends


@pytest.mark.parametrize(("template", "system"), [(name, "") for name in SAYS] + [("chatml", "Be brief.")])
def test_transformers_stops_where_launch_generate_does(template, system, tmp_path):
    workdir = tuned(template, tmp_path / "a", system)
    prompt, answer, ends = answered(workdir)
    assert len(answer) == 3 and answer[-1] == ends[0]  # it ends with its own end token, not at the limit
    convert.export(workdir, tmp_path / "out")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    asked = words.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")
    assert asked["input_ids"][0].tolist() == prompt
    found = model.generate(**asked, max_new_tokens=8, do_sample=False)[0].tolist()
    assert found == prompt + answer
    for config in (model.config, model.generation_config):
        given = config.eos_token_id
        assert (given if isinstance(given, list) else [given]) == list(ends)
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "out" / name).read_text())
        assert written["eos_token_id"] == (list(ends) if len(ends) > 1 else ends[0])
        assert written["pad_token_id"] == words.pad_token_id and written["bos_token_id"] == words.bos_token_id
    assert None not in (words.pad_token_id, words.bos_token_id, words.eos_token_id)


def test_an_exported_model_is_imported_again(tmp_path):
    """The import keeps the template and all end tokens of the exported model."""
    workdir = tuned("chatml", tmp_path / "a")
    convert.export(workdir, tmp_path / "out")
    convert.import_folder(tmp_path / "out", tmp_path / "back")
    words = Workdir(tmp_path / "back").tokenizer
    assert set(words.special.end) == set(answered(workdir)[2])
    convert.export(tmp_path / "back", tmp_path / "again")
    read = lambda out, name: json.loads((tmp_path / out / name).read_text())
    templates = [read(out, "tokenizer_config.json")["chat_template"] for out in ("out", "again")]
    ends = [sorted(read(out, "generation_config.json")["eos_token_id"]) for out in ("out", "again")]
    assert templates[0] == templates[1] and ends[0] == ends[1]


def test_a_model_of_text_alone_gets_no_template(tmp_path):
    workdir = tuned("chatml", tmp_path / "a", path="", sources=(("stdlib", 1.0),))
    convert.export(workdir, tmp_path / "out")
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == Workdir(workdir).tokenizer.eot_id


def test_what_can_not_be_handed_on_is_refused_before_anything_is_written(tmp_path):
    workdir = tuned("chatml", tmp_path / "a")
    content = json.loads((workdir / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["lstrip"] |= token["content"] == "<|im_end|>"
    (workdir / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="can't be exported with this tokenizer"):
        convert.export(workdir, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
