"""WORKDIR/summary.json: the facts about a run that its report shows besides the curves."""

import json
from pathlib import Path

from absl import logging

from data import files
from data.examples import kinds
from model import count
from model.compress.quantize import footprint
from model.weights import trained


def facts(model, flops_per_token: float, mesh, prepared, convention: str) -> dict:
    """Returns the facts that are known before the first step.

    Args:
      model: the model that trains.
      flops_per_token: model FLOPs.
      mesh: of the run.
      prepared: data.prepare.Prepared.
      convention: a text that explains how MFU is counted.
    """
    corpus = [
        {
            "name": source.name,
            "content_hash": source.content_hash,
            "train_documents": source.train_documents,
            "validation_documents": source.validation_documents,
            "bytes": _text_bytes(source),
            "tokens": source.train_tokens + source.validation_tokens,
        }
        for source in prepared.sources
    ]
    own, quantized = count.names(model.config), footprint(model)
    split = ", ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1)
    return {
        "model": {
            "parameters": count.num_params(model.config),
            "non_embedding_parameters": count.num_params(model.config, embedding=False),
            "added_parameters": sum(param.size for name, param in trained(model).items() if name not in own),
            "trained_parameters": sum(param.size for param in trained(model).values()),
            "quantized_weights": quantized.weights,
            "quantized_bytes": quantized.bytes,
            "flops_per_token": flops_per_token,
        },
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "mesh": split or "one device",
        "corpus": corpus,
        "mfu_convention": convention,
    }


def _text_bytes(source) -> int | None:
    """Returns the bytes of the text that a source's tokens were made from; None for examples, which repeat prompts."""
    if source.kind != kinds.TEXT:
        return None
    return source.train_bytes * bool(source.weight) + source.validation_bytes  # weight 0: only evaluated


def headline(facts: dict) -> str:
    """Returns the lines that a run prints first: its size, devices and the MFU convention."""
    model = facts["model"]
    trains = ""
    if model["trained_parameters"] != model["parameters"]:
        everything = model["parameters"] + model["added_parameters"]
        share = model["trained_parameters"] / everything
        trains = f", {model['trained_parameters']:,} of {everything:,} parameters train ({share:.2%})"
    if n := model["quantized_weights"]:
        trains += f", {n:,} are quantized to {model['quantized_bytes'] / n:.3f} bytes each"
    return (
        f"{model['parameters']:,} parameters ({model['non_embedding_parameters']:,} without embeddings){trains}, "
        f"{model['flops_per_token'] / 1e6:,.1f} MFLOPs a token, on {facts['device']} ({facts['mesh']})\n"
        f"{facts['mfu_convention']}"
    )


def update(workdir, values: dict) -> dict:
    """Merges `values` into summary.json and returns the whole summary."""
    path = Path(workdir) / "summary.json"
    try:
        summary = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        logging.warning("%s is damaged; the facts that earlier processes wrote are lost", path)
        summary = {}
    summary |= values
    files.replace(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary
