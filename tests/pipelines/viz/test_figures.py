import io

import numpy as np
import pytest
import torch

from asymflow.srgb import SrgbSpace
from pipelines.viz.figures import basis_tiles, convergence_figure, curves_figure, histogram_figure, spectrum_figure


@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_each_basis_vector_is_a_tile_around_the_mean_color(layout):
    tiles = basis_tiles(torch.eye(12)[:, :3], 2, layout, SrgbSpace(), columns=3)
    pixels = np.asarray(tiles)
    assert pixels.shape == (2 * 2 + 2 * 2, 3 * (2 * 2 + 2) + 2, 3)
    own = pixels[2:6, 2:6]  # the first vector: one value of one pixel, enlarged
    assert (own == 255).sum() == 4
    assert (own == 128).sum() == own.size - 4


def test_the_spectrum_marks_the_smallest_rank_of_the_share():
    gram = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0]))
    figure = spectrum_figure(gram, {"pca": torch.eye(5)[:, :2]}, 0.75)
    spectrum, captured = figure.axes
    assert captured.lines[1].get_xdata() == [2]
    assert captured.lines[1].get_label() == "75%: rank 2 of 5"
    assert [line.get_label() for line in spectrum.lines] == ["eigenvalues", "along pca"]
    assert spectrum.lines[0].get_ydata() == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.0625])
    assert spectrum.lines[1].get_ydata() == pytest.approx([0.5, 0.25])


def test_convergence_is_what_is_missing_of_the_overlap():
    figure = convergence_figure([{"patches": 10, "pca": 0.9}, {"patches": 20, "pca": 1.0}], ["pca"])
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [10, 20]
    assert line.get_ydata() == pytest.approx([0.1, 1e-12])


def test_histograms_are_shares_by_channel():
    figure = histogram_figure([[0, 1, 2], [0, 5, 9]], torch.tensor([[1, 3], [2, 2]]), ["L", "a"])
    assert [axes.get_xlabel() for axes in figure.axes] == ["L", "a"]
    assert [axes.patches[0].get_data().values.tolist() for axes in figure.axes] == [[0.25, 0.75], [0.5, 0.5]]


@pytest.mark.parametrize("log", [False, True])
def test_curves_share_their_axis_and_can_be_written(log):
    figure = curves_figure([1, 2], {"loss": [3.0, 2.0], "norm": [1.0, 1.0]}, "step", log)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "norm"]
    assert figure.axes[1].get_xlabel() == "step"
    assert figure.axes[0].get_xlabel() == ""
    assert {axes.get_yscale() for axes in figure.axes} == {"log" if log else "linear"}
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")
