"""Numbers and tables as people read them."""

import re

from flops_fit_ray import formatting as fmt


def test_numbers_read_well() -> None:
    assert [fmt.count(x) for x in (0.5, 12, 999.9, 1000, 12345, 999_999, 1.5e9, 2e13)] == [
        "0.5", "12", "1k", "1k", "12.3k", "1M", "1.5B", "20T"
    ]  # fmt: skip
    assert [fmt.flops(x) for x in (6e10, 2.154e11, 1e24, 200000, 123.0)] == [
        "6e10",
        "2.15e11",
        "1e24",
        "2e5",
        "1.23e2",
    ]
    assert [fmt.duration(x) for x in (0.04, 59.9, 59.96, 75, 3675)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "1 min 15 s", "1 h 01 min"
    ]  # fmt: skip
    assert [fmt.size(x) for x in (0, 999, 47_100, 12.64e9)] == ["0 B", "999 B", "47.1 kB", "12.6 GB"]
    assert re.split(r"\s+", fmt.table(["a", "b"], [["x", "10"]])) == ["a", "b", "x", "10"]
