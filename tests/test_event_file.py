"""TensorBoard's files: what is written can be read back, and checksums are those of the standard."""

import pytest

from flops_fit_ray.trackers._event_file import PIECE, crc32c

# RFC 3720, appendix B.4, and the check value of the polynomial
KNOWN = {
    32 * b"\0": 0x8A9136AA,
    32 * b"\xff": 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(range(31, -1, -1)): 0x113FDB5C,
    b"123456789": 0xE3069283,
    b"": 0,
}


def test_checksums_are_those_of_the_standard() -> None:
    assert crc32c(list(KNOWN)) == list(KNOWN.values())


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, PIECE - 1, PIECE, PIECE + 1, PIECE + 3, PIECE + 4, 3 * PIECE])
def test_checksums_of_every_length_are_the_remainder_of_a_division(length: int) -> None:
    data = bytes(range(7, 7 + 200)) * (length // 200 + 1)
    state = 0xFFFFFFFF
    for byte in data[:length]:  # bit by bit, as the polynomial divides
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c([b"x", data[:length], data[1 : length + 1]])[1] == state ^ 0xFFFFFFFF
