import json
import re
import resource
import signal

import pytest

from fedpft.config import dump_config, load_config
from fedpft.report.page import page, write_page

RESULT = {"name": "a <b>", "method": "fedpft", "metric": "accuracy", "rounds": 2, "seed": 42}
ACCURACIES = {"untuned_fm": 0.103, "sub_fm": 0.741, "fm": 0.823}
RESULT |= ACCURACIES | {"metrics": {key: {"accuracy": value} for key, value in ACCURACIES.items()}}
MEASURED = {name: [0.25, 0.5] for name in ("hidden_error", "gradient_cosine", "gradient_norm_ratio")}
COUNTS = {f"num_{kind}_{model}": 10**6 for kind in ("params", "transformer_params") for model in ("fm", "sub_fm")}
RESULT |= COUNTS | {f"bytes_{way}_per_client_round": 2000 for way in ("up", "down")}
RESULT |= {"num_params_adapter": 20_000, "wall_seconds": 3.0}
CONFIG = load_config(None, ["fm.path=my/bert", "task.name=sst2", "output_dir=secret/place", "lora.rank=3"])
METER = {"fidelity": {"before": MEASURED, "after": MEASURED, "leakage_gap_before": 0.003, "leakage_gap": 0.082}}
ROUNDS = [
    {"round": 1, "train_loss": 0.9},
    {"round": 2, "train_loss": 0.5, "fm": 0.823, "sub_fm": 0.741, "fidelity": MEASURED},
]


def figures(html):
    """Return the traces of every figure of a page."""
    return [json.loads(drawn)["data"] for drawn in re.findall(r'<script type="application/json">(.*?)</script>', html)]


def test_the_page_shows_title_accuracies_and_figures():
    html = page(RESULT | METER, CONFIG, ROUNDS)
    assert "<h1>a &lt;b&gt;</h1>" in html
    for shown in ("fedpft, 2 rounds, seed 42", "untuned FM</dt><dd>10.3 %", "sub-FM</dt><dd>74.1 %", "82.3 %"):
        assert shown in html
    accuracy, loss, *heat_map = figures(html)
    assert [(line["name"], line["x"], line["y"]) for line in accuracy] == [
        ("FM", [0, 2], [0.103, 0.823]),
        ("sub-FM", [0, 2], [pytest.approx(0.1), 0.741]),
    ]
    assert [(line["x"], line["y"]) for line in loss] == [([1, 2], [0.9, 0.5])]
    assert [panel["x"] for panel in heat_map[0]] == [["before", "2"]] * 3


def test_the_page_says_what_the_owner_keeps_and_what_the_sub_fm_gives_away():
    html = page(RESULT | METER | {"skill": {"agreement": 0.9, "hidden": 0.5, "loss": None}}, CONFIG, ROUNDS)
    assert "plugged-in FM minus sub-FM: the FM is better</span></th><td>+8.2 points" in html
    assert html.count("shared skill") == 2
    assert "plugged-in FM minus sub-FM" not in page(RESULT, CONFIG, ROUNDS)


def test_the_page_says_on_what_at_which_price_and_with_which_settings_but_not_where():
    html = page(RESULT, CONFIG, ROUNDS)
    assert "my/bert on sst2, 100 clients" in html
    assert 'traffic up <span class="quiet">per client and round</span></th><td>2.0 kB</td>' in html
    assert ">lora.<wbr>rank</th><td>3</td>" in html
    assert "secret/place" not in html
    assert "Stopped early" not in html
    assert "num_clients" not in html, "as the default has it"


def test_the_page_says_why_a_run_stopped_early():
    limits = {"patience": None, "min_delta": 0.0, "target": 0.8, "planned_rounds": 9}
    stopped = {"metric": "accuracy", "best": 0.823, "round": 2, "num_worse": 0, "reason": "target", **limits}
    html = page(RESULT | {"stopped": stopped}, CONFIG, ROUNDS)
    assert "fedpft, 2 of 9 rounds, seed 42" in html
    assert "Stopped early: accuracy has reached its target 80.0 %." in html


def test_further_metrics_have_a_table_each_in_its_own_unit():
    assert "all metrics" not in page(RESULT, CONFIG, ROUNDS)
    metrics = {key: {"accuracy": value, "matthews": value - 0.5} for key, value in ACCURACIES.items()}
    html = page(RESULT | {"metrics": metrics}, CONFIG, ROUNDS)
    assert ">accuracy</th><td>10.3 %</td><td>74.1 %</td><td>82.3 %</td>" in html
    assert ">Matthews corr.</th><td>-0.397</td><td>0.241</td><td>0.323</td>" in html


def test_clients_that_never_trained_are_named_beside_the_numbers():
    assert "never trained" not in page(RESULT, CONFIG, ROUNDS)
    assert "never trained: 2 of the clients that were drawn, 3, 7" in page(
        RESULT | {"never_trained": [3, 7]}, CONFIG, ROUNDS
    )


def test_a_metric_that_is_no_fraction_is_not_shown_as_per_cent():
    html = page(RESULT | {"metric": "pearson"}, CONFIG, ROUNDS)
    assert "<h2>Pearson r of the FM and of the sub-FM</h2>" in html
    assert "<dd>0.823</dd>" in html
    drawn = html[html.rindex("<h1>") :]
    assert ".0%" not in drawn
    assert " %" not in re.sub(r"<script.*?</script>", "", drawn, flags=re.DOTALL)


def test_without_the_meter_the_page_has_no_heat_map():
    rounds = [{key: value for key, value in record.items() if key != "fidelity"} for record in ROUNDS]
    html = page(RESULT, CONFIG, rounds)
    accuracy, _loss = figures(html)
    assert accuracy[1]["y"] == [None, 0.741], "the untuned sub-FM was not evaluated"
    assert "Fidelity" not in html


def test_the_page_opens_without_a_network_and_holds_plotly_once():
    html = page(RESULT | METER, CONFIG, ROUNDS)
    assert not re.search(r'<(script|link)[^>]+(src|href)="', html)
    assert html.count("* plotly.js v") == 1
    assert '<meta name="viewport"' in html


def test_the_page_is_made_from_the_runs_files(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT | METER))
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ROUNDS))
    assert write_page(tmp_path) == {"report": tmp_path / "report.html"}
    assert len(figures((tmp_path / "report.html").read_text())) == 3


def test_on_a_full_disk_the_page_is_a_warning_and_not_cut_off(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT | METER))
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ROUNDS))
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.warns(UserWarning, match=r"no report\.html: OSError: .* File too large"):
            assert write_page(tmp_path) == {}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "result.json", "rounds.jsonl"]


@pytest.mark.parametrize("result", [None, "{", "{}"])
def test_a_page_that_cannot_be_made_is_a_warning(tmp_path, result):
    if result is not None:
        (tmp_path / "result.json").write_text(result)
    (tmp_path / "rounds.jsonl").write_text("")
    with pytest.warns(UserWarning, match=r"no report\.html: \w+"):
        assert write_page(tmp_path) == {}


def test_the_spread_over_clients_has_a_figure_and_says_that_no_client_was_evaluated():
    spread = {"mean": 0.75, "p10": 0.52, "min": 0.5, "max": 1.0, "values": [0.5, None, 1.0]}
    html = page(RESULT | {"client_expected_accuracy": spread}, CONFIG, ROUNDS)
    assert "mean 75.0 %; 10th percentile 52.0 %; worst client 50.0 %; 2 clients" in html
    assert "No client&#x27;s examples were evaluated" in html
    assert [(box["type"], box["x"]) for box in figures(html)[-1]] == [("box", [0.5, 1.0])]
    many = RESULT | {"client_expected_accuracy": spread | {"clients": 3000}}
    assert "; 3000 clients, 2 of them drawn" in page(many, CONFIG, ROUNDS)
    for without in ({}, {"client_expected_accuracy": {}}):
        assert "Expected accuracy" not in page(RESULT | without, CONFIG, ROUNDS)
