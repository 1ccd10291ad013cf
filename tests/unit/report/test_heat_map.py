import pytest

from fedpft.report.fidelity import PANELS, heat_map


def record(round_index, *layers):
    """Return a round's record; `layers` are the hidden errors, the other quantities are made from them."""
    cosines = [None if value is None else 1 - value for value in layers]
    ratios = [None if value is None else 1 + value for value in layers]
    fidelity = {"hidden_error": list(layers), "gradient_cosine": cosines, "gradient_norm_ratio": ratios}
    return {"round": round_index, "fidelity": fidelity}


RECORDS = [record(0, 0.1, 0.2, 0.3), {"round": 1}, record(2, 0.4, None, 0.6)]


def test_layers_are_rows_from_the_bottom_and_rounds_are_columns():
    figure = heat_map(RECORDS)
    hidden = figure.data[0]
    assert hidden.x == ("before", "2")
    assert hidden.y == (0, 1, 2)
    assert [list(row) for row in hidden.z] == [[0.1, 0.4], [0.2, None], [0.3, 0.6]]
    assert all(axis.autorange is None and axis.range is None for axis in figure.select_yaxes()), "upwards"
    assert all(axis.type == "category" for axis in figure.select_xaxes())


def test_there_is_a_titled_panel_for_each_quantity_with_its_numbers_in_the_cells():
    figure = heat_map(RECORDS)
    assert [annotation.text for annotation in figure.layout.annotations] == [title for _, title, _ in PANELS]
    assert [list(row) for row in figure.data[1].text] == [["0.90", "0.60"], ["0.80", "none"], ["0.70", "0.40"]]
    assert [list(row) for row in figure.data[2].text] == [["1.10", "1.40"], ["1.20", "none"], ["1.30", "1.60"]]


def test_colours_mean_the_same_in_every_run():
    small, large = heat_map([record(0, 0.001)]), heat_map([record(0, 5.0)])
    ranges = [[(panel.zmin, panel.zmax) for panel in figure.data] for figure in (small, large)]
    assert ranges[0] == ranges[1] == [(0, 1), (-1, 1), (0, 2)]


def test_plotlys_grey_numbers_have_the_contrast_of_wcag_on_every_colour():
    def brightness(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.05 + sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    colours = [colour for panel in heat_map(RECORDS).data for _, colour in panel.colorscale]
    assert len(colours) == 8
    assert min(map(brightness, colours)) / brightness("#444444") >= 4.5


@pytest.mark.parametrize("num_layers", [1, 3, 12, 48])
def test_cells_have_the_same_height_however_many_layers(num_layers):
    figure = heat_map([record(0, *[0.5] * num_layers)])
    inside = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    heights = [inside * (axis.domain[1] - axis.domain[0]) / num_layers for axis in figure.select_yaxes()]
    assert heights == pytest.approx([24] * 3)


def test_without_a_measurement_there_is_no_figure():
    with pytest.raises(AssertionError, match="needs a measurement"):
        heat_map([{"round": 1}])
