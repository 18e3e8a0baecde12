import pytest

from sapp_cli.report.wording import (
    cut_in_the_middle,
    metric_text,
    percent,
    printable,
    size_text,
    time_text,
    times_smaller,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_204_264, "1.20 MB"),
        (4_300_000_000, "4.30 GB"),
        (12_345_000_000_000_000, "12,345 TB"),
    ],
)
def test_sizes_have_three_digits(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (9.996e-3, "10.0 ms"),
        (2.5e-4, "250 µs"),
        (9.997e-4, "1.00 ms"),
        (4e-7, "0.40 µs"),
    ],
)
def test_times_have_three_digits(seconds, text):
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0.0 %"),
        (1e-7, "< 0.1 %"),
        (0.0005, "0.1 %"),
        (0.875, "87.5 %"),
        (0.99949, "99.9 %"),
        (0.9996, "> 99.9 %"),
        (1, "100.0 %"),
    ],
)
def test_shares_are_never_rounded_to_none_or_all(share, text):
    assert percent(share) == text


def test_names_are_cut_in_the_middle():
    assert cut_in_the_middle("encoder.layer.0.output.weight", 29) == "encoder.layer.0.output.weight"
    assert cut_in_the_middle("encoder.layer.0.output.weight", 16) == "encod…put.weight"
    assert len(cut_in_the_middle("x" * 99, 24)) == 24


def test_control_characters_are_escaped():
    assert printable("a\x1b[2Jb\n\u202ec é") == "a\\x1b[2Jb\\n\\u202ec é"


def test_metrics_and_ratios():
    assert [metric_text(value) for value in (0.0, 0.97222, 12.5, 0.00012, 3.2e7)] == [
        "0.0000",
        "0.9722",
        "12.5000",
        "1.200e-04",
        "3.200e+07",
    ]
    assert times_smaller(1200, 150) == "8.0× smaller"
    assert times_smaller(100, 100) == times_smaller(100, 0) == ""
