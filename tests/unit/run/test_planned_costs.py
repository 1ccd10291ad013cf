"""What `plan` says of clients that are sent, send and keep more than an adapter."""

from fedpft.config import load_config
from fedpft.run.planning import plan
from tests.tiny import tiny_text_run


def test_scaffolds_variates_are_in_the_plans_traffic_disk_and_memory(tmp_path):
    settings = tiny_text_run(tmp_path)
    configs = [load_config(None, [*settings, f"federated.client.kind={kind}"]) for kind in ("adamw", "scaffold")]
    plain, scaffold = (plan(config, counts_memory=False) for config in configs)
    vector = 4 * plain["num_params_adapter"]
    assert (plain["bytes_up_per_client_round"], plain["bytes_down_per_client_round"]) == (vector, vector)
    assert (scaffold["bytes_up_per_client_round"], scaffold["bytes_down_per_client_round"]) == (2 * vector, 3 * vector)
    assert "client_states_bytes" not in plain
    assert scaffold["client_states_bytes"] == vector * (4 + 2 * 3)
    memory = [found["local_step"]["memory_bytes_sub_fm"] for found in (plain, scaffold)]
    assert memory[0] - memory[1] == vector, "AdamW keeps two moments, SCAFFOLD a correction"
