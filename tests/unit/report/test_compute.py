import pytest

from fedpft.report.compute import compute_rows, format_flops

STEP = {
    "examples": 4, "tokens": 32,
    "flops_fm": 3e9, "flops_sub_fm": 2e9, "memory_bytes_fm": 5_000_000, "memory_bytes_sub_fm": 4_000_000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("flops", "text"),
    [(7, "7 FLOP"), (4.312e9, "4.31 GFLOP"), (999.96e6, "1 GFLOP"), (2e15, "2 PFLOP"), (3.3e21, "3.3e+03 EFLOP")],
)
def test_flops_in_words(flops, text):
    assert format_flops(flops) == text


def test_a_plan_has_the_cost_of_a_step():
    rows = list(compute_rows({"local_step": STEP}))
    assert rows == [
        ("compute", "2 GFLOP", "per step of 4 x 32 tokens; FM: 1.50 x"),
        ("memory", "4.0 MB", "of a client; FM: 1.25 x"),
    ]


def test_a_result_has_what_clients_spent():
    spent = {"client_flops_per_round": 70e9, "client_memory_bytes": 4_500_000, "client_gpu_bytes": 9_000_000}
    rows = list(compute_rows({"local_step": STEP, **spent}))
    assert rows == [
        ("compute", "70 GFLOP", "per client and round; FM: 1.50 x"),
        ("memory", "4.5 MB", "of a client; FM: 1.25 x"),
        ("GPU memory", "9.0 MB", "of a client, measured"),
    ]


def test_images_have_no_tokens_and_what_was_not_counted_has_no_rows():
    image_step = {key: value for key, value in STEP.items() if key != "tokens"}
    assert next(compute_rows({"local_step": image_step}))[2] == "per step of 4 examples; FM: 1.50 x"
    assert list(compute_rows({"client_fits": 3})) == []
