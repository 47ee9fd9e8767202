"""Writes TensorBoard event files, with the small part of the protocol buffer format that scalars need.

tensorboardX could do this, but it imports torch if torch is installed, which costs 1.5 s at start-up and puts a second
OpenMP runtime into a JAX process. Histograms, images, text and everything else but scalars are left out.
"""

import math
import socket
import struct
import time
from pathlib import Path

from train.record.appending import AppendedFile


class EventFile:
    """A TensorBoard event file, a sequence of records that each hold an `Event` message with scalars.

    A record has the length of the message (uint64), its checksum, the message, and its checksum (masked CRC-32C), as in
    TFRecord files. The field numbers are those of
    https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
    """

    def __init__(self, folder, purge_step: int | None = None):
        """Creates a new file in `folder`. TensorBoard hides values of `purge_step` and later steps in earlier files."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names. Microseconds make sure that the file of a
        # resumed run is the last one.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self.file = AppendedFile(Path(folder) / name)
        self._record(_double(1, time.time()) + _bytes(3, b"brain.Event:2"))  # file_version
        if purge_step is not None:
            session_start = _bytes(7, _integer(1, 1))  # session_log.status = START
            self._record(_double(1, time.time()) + _integer(2, purge_step) + session_start)

    def write(self, step: int, seconds: float, values: dict[str, float]):
        summary = b"".join(_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in values.items())
        self._record(_double(1, seconds) + _integer(2, step) + _bytes(5, summary))

    def _record(self, message: bytes):
        length = struct.pack("<Q", len(message))
        self.file.write(length + _checksum(length) + message + _checksum(message))


def _varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + _varint(value >> 7)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    value = math.copysign(math.inf, value) if abs(value) > 3.4e38 else value  # beyond float32, where struct raises
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table


_CRC_TABLE = _crc_table()


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
