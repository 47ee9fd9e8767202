"""TensorBoard event files, in the few lines of protocol buffer that a scalar needs.

tensorboardX would do, but it imports torch wherever torch is installed: 1.5 s of start-up and a second OpenMP runtime
in a JAX process. Left out: histograms, images, text, and everything else that is not a number with a name and a step.
"""

import math
import socket
import struct
import time
from pathlib import Path

from train.record.appending import AppendedFile


class EventFile:
    """A TensorBoard event file: records of `Event` messages, scalars only.

    Record: length (uint64), its checksum, the message, its checksum (masked CRC-32C), as in TFRecord files.
    https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto has the field numbers.
    """

    def __init__(self, folder, purge_step: int | None = None):
        """`purge_step`: TensorBoard then hides what earlier files in the folder hold for this step and later."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names: microseconds, so that a resumed run's is last.
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
    value = math.copysign(math.inf, value) if abs(value) > 3.4e38 else value  # past float32
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
