from collections import Counter

import pytest

from pipelines.data.curate.report import BINS, Histograms, report_figure


def test_values_beyond_the_range_count_in_the_end_bins():
    histograms = Histograms()
    for value in (-1.0, 0.0, 4.99, 10.0, 99.0):
        histograms.add("read", {"aesthetic": value})
    counts = histograms.counts["read"]["aesthetic"]
    assert (counts[0], counts[BINS // 2 - 1], counts[-1], sum(counts)) == (2, 1, 2, 5)
    assert sum(histograms.counts["kept"]["aesthetic"]) == 0


def test_merged_histograms_are_those_of_all_rows():
    rows = [{"punsafe": i / 10, "aspect": 1 + i} for i in range(8)]
    whole, first, second = Histograms(), Histograms(), Histograms()
    for i, row in enumerate(rows):
        whole.add("kept", row)
        (first if i % 3 else second).add("kept", row)
    first.merge(second.counts)
    assert first.counts == whole.counts
    with pytest.raises(ValueError, match="zip"):
        first.merge({"kept": {"punsafe": [1]}})


def test_figure_shows_each_reason_and_size():
    reasons, buckets = Counter({"too small": 3, "duplicate": 1}), Counter({"64x64": 5})
    figure = report_figure(Histograms(), reasons, buckets)
    shown = {axes.get_title(): [label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes}
    assert shown["rejected"] == ["duplicate", "too small"]
    assert shown["kept, by size"] == ["64x64"]
