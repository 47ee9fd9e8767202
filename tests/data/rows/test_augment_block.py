"""The config block data.augment changes a stream of batches as it says, and wrong values are refused."""

import json

import numpy as np
import pytest

from data.batch import DataError
from data.pipeline import train_pipeline, validation_batches
from data.prepare import prepare
from data.rows import augment
from data.tokens import tokenizer as tokenizers


def test_training_alone_is_augmented_and_restored_exactly(settings, tmp_path):
    lines = [json.dumps({"text": f"some few words {'ab'[i % 2]} of it", "label": i % 2}) for i in range(60)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    block = dict(path=str(tmp_path / "x.jsonl"), format="labels", labels={"read": "last"}, augment={"delete": 0.2})
    prepared = prepare(settings(seq_len=64, tokenizer={"kind": "byte"}, **block), tmp_path / "data", lambda line: None)
    change = augment.make(block["augment"], tokenizers.load(prepared.tokenizer_path))
    open_ = lambda position=None, augmentation=change: train_pipeline(
        prepared, 4, 0, position=position, augmentation=augmentation
    )
    first = open_()
    batches = [first.next() for _ in range(3)]
    position = first.position()
    expected = first.next()
    again = open_(position)
    assert all(np.array_equal(value, expected[key]) for key, value in again.next().items())
    lengths = {int(n) for batch in batches for row in batch["segment_ids"] for n in np.bincount(row)[1:]}
    assert len(lengths) > 2
    for batch in validation_batches(prepared, 4):
        assert {int(n) for row in batch["segment_ids"] for n in np.bincount(row)[1:]} <= {23}
    for pipeline in (first, again):
        pipeline.close()
    with pytest.raises(DataError, match="augmentation and seed 0 is stream"):
        open_(position, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"delete": 1.0}}, "data.augment.delete must be a fraction from 0 up to 1, not 1.0"),
        ({"augment": {"drop": 0.1}}, "Unknown field data.augment.drop"),
        ({"augment": {"swap": 0.1}}, "in data.sources there is nothing to change"),
        (
            {"augment": {"swap": 0.1}, "path": "x", "format": "labels", "sources": (), "labels": {"kind": "token"}},
            "there is nothing to change",
        ),
    ],
)
def test_mistakes_about_augmentation(settings, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        prepare(settings("stdlib") | changes, tmp_path, lambda line: None)


def test_masks_need_a_mask_token(settings, tmp_path):
    tokenizers.train([], "byte").save(tmp_path / "tokenizer.json")
    for tokenizer in ({"kind": "byte"}, {"kind": "file", "path": str(tmp_path / "tokenizer.json")}):
        with pytest.raises(DataError, match="the tokenizer has no mask token"):
            prepare(settings("pairs:x", tokenizer=tokenizer, augment={"mask": 0.1}), tmp_path / "data", print)
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError, match="the tokenizer has no mask token"):
        augment.make({"mask": 0.1}, tokenizers.train([], "byte"))
    assert augment.make({"mask": 0.0}, tokenizers.train([], "byte")) is None
