import pytest

from fedpft.config import load_config
from fedpft.federated.pool import SequentialPool
from fedpft.run.pipeline import make_pool
from fedpft.run.verify import verify
from tests.tiny import tiny_text_run


class PerturbedPool(SequentialPool):
    """Changes the first LoRA tensor of every update of round 2 by one."""

    def run(self, plan, client_ids):
        for update in super().run(plan, client_ids):
            if plan.round_index == 2:
                update.adapter[3] += 1
            yield update


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_pool_that_spoils_a_tensor_in_round_2_is_caught_and_all_else_is_the_same(tmp_path, monkeypatch):
    settings = [*tiny_text_run(tmp_path), "align.layers.num_steps=1", "server.num_threads=1"]

    def spoiled_with_one_actor(config):
        return PerturbedPool() if config.pool.actors == 1 else make_pool(config)

    monkeypatch.setattr("fedpft.run.traces.make_pool", spoiled_with_one_actor)
    heard = []
    checks = verify(load_config(None, settings), 3, heard.append)
    differences = {check.name: check.difference for check in checks}
    spoiled = differences.pop("1 actor, 2 actors")
    assert differences == dict.fromkeys(
        ["two runs", "Ray, sequential", "straight, resumed after round 1", "straight, resumed after round 2"]
    )
    assert spoiled.round_index == 2
    assert spoiled.tensor.endswith("layer.0.attention.output.dense.lora_A.default.weight")
    assert spoiled.max_abs_difference == pytest.approx(1, abs=1e-6)
    assert heard[1] == "3 rounds as configured"
    assert not (tmp_path / "out").exists()
