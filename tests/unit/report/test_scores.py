import pytest

from fedpft.report.scores import metric_change, metric_title, metric_value, round_scores, score_rows


@pytest.mark.parametrize(
    ("name", "title", "value", "change"),
    [
        ("accuracy", "accuracy", "71.2 %", "+71.2 points"),
        ("mismatched/accuracy", "mismatched accuracy", "71.2 %", "+71.2 points"),
        ("f1", "F1", "71.2 %", "+71.2 points"),
        ("matthews", "Matthews corr.", "0.712", "+0.712"),
        ("pearson", "Pearson r", "0.712", "+0.712"),
        ("mse", "MSE", "0.712", "+0.712"),
    ],
)
def test_only_fractions_are_per_cent(name, title, value, change):
    assert (metric_title(name), metric_value(0.7123, name), metric_change(0.7123, name)) == (title, value, change)


def test_a_rounds_line_has_both_models_in_the_metrics_unit_or_nothing():
    record = {"fm": 0.5, "sub_fm": -0.25}
    assert round_scores(record | {"metric": "accuracy"}) == ["fm 50.0 %", "sub-fm -25.0 %"]
    assert round_scores(record | {"metric": "pearson"}) == ["fm 0.500", "sub-fm -0.250"]
    assert round_scores({"round": 1}) == []


def test_the_final_table_has_a_row_a_model_and_one_for_each_further_metric():
    values = {"untuned_fm": 0.1, "sub_fm": 0.6, "fm": 0.5}
    metrics = {key: {"pearson": v, "mse": 2 * v, "mismatched/pearson": v - 0.3} for key, v in values.items()}
    assert list(score_rows(values | {"method": "fedpft", "metric": "pearson", "metrics": metrics})) == [
        ("Pearson r, untuned FM", "0.100", ""),
        ("Pearson r, sub-FM", "0.600", "+0.500"),
        ("Pearson r, plugged-in FM", "0.500", "+0.400"),
        ("MSE", "1.000", "sub-FM 1.200, untuned FM 0.200"),
        ("mismatched Pearson r", "0.200", "sub-FM 0.300, untuned FM -0.200"),
    ]
