"""Reads TFDS datasets as documents."""

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.batch import DataError
from data.read import fingerprints
from data.read.documents import BadLines, Document
from data.read.listing import slug


class TfdsSource:
    """A `Source` of a TFDS dataset, downloaded at first use and written as array_record, which needs no TensorFlow.

    The dataset's own train and validation (or test) splits are kept. If it has only a train split, its documents are
    split like those of other sources.

    Args:
      dataset: a TFDS name, or the folder of a prepared dataset.
      text_field: the feature with the text; None: 'text', or the only text feature.
    """

    def __init__(self, dataset: str, text_field: str | None):
        self.name = slug(dataset if not Path(dataset).is_dir() else Path(dataset).resolve().parent.name)
        self.notes: Sequence[str] = ()
        self._dataset = dataset
        self._field = text_field

    def fingerprint(self) -> list:
        info = self._builder().info
        # A catalogue name includes a version, but the content of a folder may change.
        if not os.path.isdir(self._dataset):
            return [self._field, info.full_name]
        files = [path for path in Path(self._dataset).rglob("*") if path.is_file()]
        return [self._field, info.full_name, *fingerprints.of_files(sorted(files))]

    def fetch(self) -> None:
        builder = self._builder()
        if os.path.isdir(self._dataset):
            return
        try:
            builder.download_and_prepare()
        except Exception as error:  # each dataset has its own download code, which may fail in any way
            raise DataError(
                f"TFDS dataset {self._dataset!r} could not be downloaded ({type(error).__name__}: {error}). Is there a "
                "network? Without one, prepare the dataset on another machine and copy its folder to "
                f"{builder.data_dir}, or set TFDS_DATA_DIR to where it is."
            ) from error

    def documents(self, bad: BadLines) -> Iterator[Document]:
        builder = self._builder()
        held_out = next((name for name in ("validation", "valid", "test") if name in builder.info.splits), None)
        if "train" not in builder.info.splits:
            raise DataError(
                f"TFDS dataset {self._dataset} has no train split, only {', '.join(builder.info.splits)}. Prepare it "
                "again with one, or write its text into files and use files:GLOB."
            )
        key = self._text_field(builder)
        for name, split in (("train", "train" if held_out else None), (held_out, "validation")):
            if name is None:
                continue
            for i, example in enumerate(builder.as_data_source(split=name)):
                try:
                    text = example[key].decode() if isinstance(example[key], bytes) else str(example[key])
                except UnicodeDecodeError as error:
                    bad.add(f"{self._dataset}, {name} example {i}", f"not UTF-8 ({error.reason})")
                    continue
                yield Document(f"{name}:{i}", text, split)

    def _builder(self):
        import tensorflow_datasets as tfds
        import tensorflow_datasets.text  # the catalogue finds c4, lm1b and wikipedia only after this

        if os.path.isdir(self._dataset):
            try:
                return tfds.builder_from_directory(self._dataset)
            except Exception as error:
                raise DataError(
                    f"{self._dataset} is not the folder of a TFDS dataset, which has a dataset_info.json: {error}"
                ) from error
        try:
            return tfds.builder(self._dataset, file_format="array_record")
        except tfds.core.DatasetNotFoundError as error:
            known = tfds.list_builders(with_community_datasets=False)
            close = difflib.get_close_matches(self._dataset.split("/")[0], known)
            hint = (
                f"did you mean {' or '.join(close)}?" if close else "see tensorflow.org/datasets/catalog for the names."
            )
            raise DataError(f"There is no TFDS dataset {self._dataset!r}: {hint}") from error
        except (AssertionError, ValueError, OSError, ImportError) as error:
            raise DataError(f"TFDS dataset {self._dataset!r} can't be opened: {error}") from error

    def _text_field(self, builder) -> str:
        import tensorflow_datasets as tfds

        texts = sorted(name for name, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text))
        wanted = self._field or ("text" if "text" in texts else None) or (texts[0] if len(texts) == 1 else None)
        if not texts:
            raise DataError(
                f"TFDS dataset {self._dataset!r} has no text feature, only {', '.join(builder.info.features)}."
            )
        if wanted is None or wanted not in texts:
            raise DataError(
                f"TFDS dataset {self._dataset!r}: which field is the text? Write tfds[FIELD]:{self._dataset}, with one "
                f"of these fields: {', '.join(texts)}."
            )
        return wanted
