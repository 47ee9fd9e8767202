"""TFDS builder for text: writes documents, already split, as a dataset {'text', 'name'}.

The format is array_record, for which TFDS needs no TensorFlow; `tfds.builder_from_directory` reads it. TFDS shuffles
the documents by a hash of their names, so their order does not show where they came from. data/clean/ reads, cleans and
splits the source. Left out: Beam pipelines, for corpora that one machine can't read through.
"""

import contextlib
import errno
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from data.batch import DataError
from data.clean.cleaned import Waiting


class Text(tfds.core.GeneratorBasedBuilder):
    """The documents of each split."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: Mapping[str, Waiting], data_dir: Path):
        self._splits = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "name": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str):
        for name, text in self._splits[split].read():
            yield name.decode(), {"text": text, "name": name}


def build(splits: Mapping[str, Waiting], directory: Path) -> str:
    """Writes the documents as a dataset and returns its path relative to `directory`.

    Args:
      splits: the documents of each split, which are read once.
      directory: where the dataset is written.

    Raises:
      OSError: not all documents could be written.
    """
    builder = Text(splits=splits, data_dir=directory / "tfds")
    # TFDS would print messages about a download, which does not happen here.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    tfds.enable_progress_bar()
    for split, waiting in splits.items():
        found, given = builder.info.splits[split].num_examples, waiting.facts.documents
        if found != given:
            raise OSError(errno.ENOSPC, f"{found} of {given} {split} documents written", str(builder.data_dir))
    return str(Path(builder.data_dir).relative_to(directory))


def read(dataset: Path, split: str) -> Iterator[str]:
    """Yields the texts of a split that `build` wrote."""
    return (text for _, text in documents(dataset, split))


def documents(dataset: Path, split: str) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of a split that `build` wrote.

    Raises:
      DataError: the files have changed since they were written.
    """
    builder = tfds.builder_from_directory(dataset)
    try:
        examples = builder.as_data_source(split=split)
        if (found := len(examples)) != (written := builder.info.splits[split].num_examples):
            raise RuntimeError(f"it has {found:,} of {written:,} documents")
        for i in range(found):
            example = examples[i]
            yield example["name"].decode(), example["text"].decode()
    except (RuntimeError, FileNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"The {split} split in {dataset} is damaged: {reason}. Move {dataset.parents[2]} away and run again, which "
            "writes it again."
        ) from error
