import json
import re
from html import unescape

import pytest

from fedpft.report.clients import EXPECTED
from fedpft.report.compare.clients import client_figure
from fedpft.report.compare.comparison import compare
from fedpft.report.compare.figures import (
    curve_figure,
    fidelity_figure,
    group_colours,
    last_losses,
    parallel_figure,
    pareto_figure,
    partitions,
    spread_figure,
)
from fedpft.report.compare.page import compare_page
from fedpft.report.compare.record import comparison_json
from tests.run_folders import run_folder, sweep_folder

HALF, QUARTER, FEDOT = "fedpft, retained_ratio=0.5", "fedpft, retained_ratio=0.25", "fedot"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return compare([sweep_folder(tmp_path_factory.mktemp("sweep"))])


@pytest.fixture(scope="module")
def html(comparison):
    return compare_page(comparison)


def by_group(figure, mode=None):
    return {trace.legendgroup: trace for trace in figure.data if mode is None or trace.mode == mode}


def test_curves_are_means_and_bands_go_from_the_lowest_to_the_highest_seed(comparison):
    figure = curve_figure(comparison, "fm")
    line, band = by_group(figure, "lines+markers")[HALF], by_group(figure, "lines")[HALF]
    assert (line.x, line.y) == ((0, 2), (0.25, pytest.approx(0.81)))
    assert (band.x, band.y) == ((0, 2, 2, 0), (0.25, pytest.approx(0.82), 0.80, 0.25))
    assert by_group(curve_figure(comparison, "sub_fm"), "lines+markers")[HALF].x == (2,)


def test_around_a_single_value_the_metrics_axis_is_narrow(tmp_path):
    run_folder(tmp_path / "run", fm=0.8)
    found = compare([tmp_path])
    assert curve_figure(found, "sub_fm").layout.yaxis.range == (pytest.approx(0.63), pytest.approx(0.77))
    assert curve_figure(found, "fm").layout.yaxis.range is None, "0.25 and 0.8"
    assert pareto_figure(found, "bytes").layout.yaxis.range == (pytest.approx(0.72), pytest.approx(0.88))


def test_the_front_is_drawn_and_what_is_off_it_fades(comparison):
    figure = pareto_figure(comparison, "bytes")
    front, points = figure.data[0], by_group(figure)
    assert front.x == (6000, 8000)
    assert {label: points[label].opacity for label in (HALF, QUARTER, FEDOT)} == {HALF: 1, QUARTER: 1, FEDOT: 0.4}
    assert (points[HALF].error_y.array, points[HALF].error_y.arrayminus) == (
        (pytest.approx(0.01),), (pytest.approx(0.01),),
    )  # fmt: skip
    assert (figure.layout.xaxis.ticksuffix, figure.layout.xaxis.range) == ("B", None)


def test_a_price_that_is_the_same_for_all_is_offered_last_on_an_axis_whose_numbers_are_readable(tmp_path):
    for rank in (4, 8):
        run_folder(tmp_path / str(rank), f"lora.rank={rank}", client_flops_per_round=rank * 10**6)
    found = compare([tmp_path])
    _fm, _sub_fm, first, second, *_ = re.findall("<option>(.*?)</option>", compare_page(found))
    assert (first, second) == ("compute of a client and round", "traffic of all rounds")
    assert pareto_figure(found, "client_memory").layout.xaxis.range == (63_000, 77_000)


def test_the_leakage_gap_has_the_metrics_unit(comparison, html):
    assert comparison.price(HALF, "leakage_gap") == "+10.0 points"
    assert ">+10.0 points</span>" in html
    assert pareto_figure(comparison, "leakage_gap").layout.xaxis.tickformat == ".0~%"


def test_many_verdicts_are_folded_under_their_tally(tmp_path, html):
    assert "<details>" not in html
    for rank in range(1, 7):
        for seed, noise in ((1, 0.0), (2, 0.002), (3, 0.001 * rank)):
            run_folder(tmp_path / f"{rank}_{seed}", f"lora.rank={rank}", seed=seed, fm=0.5 + 0.1 * (rank > 3) + noise)
    folded = compare_page(compare([tmp_path], "rank=4"))
    assert "<summary>Against rank=4: 2 not distinguishable, 3 worse</summary><ul><li" in folded


def test_a_settings_few_values_are_apart_however_close_their_numbers_are(tmp_path):
    for index, rate in enumerate((1.0, 1e-3, 1e-2)):
        run_folder(tmp_path / str(index), f"federated.lr={rate}", fm=0.5 + index / 10)
    figure = parallel_figure(compare([tmp_path]))
    heights = {label.text: label.y for label in figure.layout.annotations if label.x == 0}
    assert heights == {"0.001": 0, "0.01": 0.5, "1": 1}


def test_every_run_crosses_all_axes_between_the_lowest_and_the_highest_value(comparison):
    figure = parallel_figure(comparison)
    assert figure.layout.xaxis.ticktext == ("method.name", "retained_ratio", "accuracy")
    assert len(figure.data) == 8
    first = figure.data[0]
    assert first.y[1] == 1, "the larger ratio"
    heights = [trace.y[-1] for trace in figure.data]
    assert (min(heights), max(heights)) == (0, 1)


def test_a_group_has_one_colour_in_all_figures(comparison):
    colours = group_colours(comparison)
    assert len(set(colours.values())) == 3
    for figure in (pareto_figure(comparison, "bytes"), spread_figure(comparison)):
        for label, trace in by_group(figure).items():
            assert label is None or trace.marker.color == colours[label]
    for trace in (*curve_figure(comparison, "fm").data, *parallel_figure(comparison).data):
        assert colours[trace.legendgroup] in (trace.line.color, trace.fillcolor)


def test_fidelity_is_the_mean_over_seeds_and_the_axis_names_the_groups(comparison, tmp_path):
    figure = fidelity_figure(comparison)
    assert [trace.legendgroup for trace in figure.data[:3]] == [HALF, FEDOT, QUARTER]
    assert [trace.x for trace in figure.data[:3]] == [(0,), (1,), (2,)]
    assert figure.layout.xaxis3.ticktext == ("fedpft,<br>retained_ratio=0.5", "fedot", "fedpft,<br>retained_ratio=0.25")
    for seed, error in ((1, 0.2), (2, 0.4)):
        after = {"hidden_error": [error], "gradient_cosine": [None], "gradient_norm_ratio": [1.0]}
        run_folder(tmp_path / str(seed), seed=seed, fidelity={"after": after})
    hidden, cosine, _ = fidelity_figure(compare([tmp_path])).data
    assert ([*hidden.z[0]], [*cosine.z[0]]) == ([pytest.approx(0.3)], [None])


def test_a_clients_last_loss_counts_and_equal_partitions_are_shown_once(comparison):
    assert last_losses(comparison.groups[0].runs[0]) == {0: 0.9, 1: 0.4, 2: 0.6}
    assert len(by_group(spread_figure(comparison))[HALF].y) == 9
    ((title, table),) = partitions(comparison)
    assert title == "seed 1, 2, 3: all groups"
    assert table["label_histogram"] == [[3, 1], [0, 4], [2, 2]]


def test_clients_of_every_seed_are_points_and_the_table_has_means_over_seeds(comparison, html):
    half = comparison.groups[0]
    figure = client_figure({half.label: half}, group_colours(comparison), EXPECTED)
    assert list(by_group(figure)[HALF].x) == pytest.approx([0.50, 1.0, 0.52, 1.0, 0.51, 1.0])
    assert comparison.client_spreads()[HALF] == pytest.approx({"mean": 0.81, "p10": 0.61, "min": 0.51})
    assert "<td>81.0 %</td><td>61.0 %</td><td>51.0 %</td>" in html
    (written,) = (group for group in comparison_json(comparison)["groups"] if group["label"] == HALF)
    assert written["client_expected_accuracy"] == comparison.client_spreads()[HALF]


def test_accuracy_on_the_clients_own_examples_stands_beside_the_expected_one(tmp_path):
    spread = {"mean": 0.7, "variance": 0.0225, "worst_decile": 0.4, "values": [0.4, None, 1.0]}
    for seed in (1, 2):
        run_folder(tmp_path / str(seed), seed=seed, client_accuracy=spread)
    html = compare_page(compare([tmp_path]))
    assert "<td>70.0 %</td><td>0.0225</td><td>40.0 %</td>" in html
    assert "Expected accuracy of the clients" in html


def test_a_group_in_which_a_run_lacks_the_clients_accuracy_has_no_mean_over_seeds(tmp_path):
    run_folder(tmp_path / "a", seed=1)
    run_folder(tmp_path / "b", seed=2, client_expected_accuracy=None)
    found = compare([tmp_path])
    assert found.client_spreads() == {}
    assert "Expected accuracy" not in compare_page(found)


def test_the_page_says_all_that_the_json_says(comparison, html):
    text = unescape(html)
    for label in (QUARTER, FEDOT):
        assert comparison.verdict(label) in text
    for shown in ("81.0 % [78.5 to 83.5]", "-9.8 points", "3.5 s"):
        assert shown in text
    rows = re.findall(r'<tr data-group="([^"]+)"', html)
    assert rows == 3 * [HALF, FEDOT, QUARTER], "the best first: groups, their clients, their settings"


def test_the_page_needs_no_network_and_holds_plotly_once(html):
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", html)
    assert "default-src 'none'" in html
    assert html.count("* plotly.js v") == 1
    assert len(html) < 6e6


def test_what_older_runs_lack_is_left_away(tmp_path):
    lacking = dict.fromkeys(
        ("client_expected_accuracy", "sub_fm", "fidelity", "construction", "bytes_up_total", "client_flops_per_round",
         "client_memory_bytes",
         "num_params_sub_fm", "align_seconds")
    )  # fmt: skip
    folder = run_folder(tmp_path / "a", **lacking)
    (folder / "partition.json").unlink()
    records = [{"round": 1, "train_loss": 1.0}, {"round": 2, "train_loss": 0.5, "fm": 0.8}]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    html = compare_page(compare([folder]))
    titles = re.findall("<h2>(.*?)</h2>", html)
    assert titles == ["Groups", "Accuracy by round", "What it costs"]
    assert 'data-choice="sub-FM"' not in html


def test_names_are_text_never_markup(tmp_path):
    for ratio in ("0.5", "0.25"):
        run_folder(tmp_path / ratio, f"method.retained_ratio={ratio}", f"fm.path=<b>{ratio}</script>")
    html = compare_page(compare([tmp_path]))
    body = html[html.index("<h1>") :]
    assert "<b>" not in body
    assert len(re.findall("</script>", body)) == len(re.findall("<script", body))
