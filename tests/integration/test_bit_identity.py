"""The same run, whoever plays the clients."""

import pytest

from fedpft.config import load_config
from fedpft.run.pipeline import run
from tests.tiny import tiny_text_run

TWO_ALIGNMENTS = ["federated.rounds=5", "method.uncompressed_layers=[0]"]  # after rounds 2 and 4
BUILT_EACH_TIME = ["cache.enabled=false"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return [*tiny_text_run(tmp_path_factory.mktemp("bits")), *TWO_ALIGNMENTS, *BUILT_EACH_TIME]


@pytest.fixture(scope="module")
def sequential(settings, tmp_path_factory):
    return files_of(settings, tmp_path_factory.mktemp("sequential"))


def files_of(settings, folder, *overrides):
    """Run; return the bytes of the adapter and of the re-aligned sub-FM, and both accuracies."""
    result = run(load_config(None, [*settings, f"output_dir={folder / 'out'}", *overrides])).result
    adapter = (folder / "out/adapter/adapter_model.safetensors").read_bytes()
    return adapter, (folder / "out/sub_fm/model.safetensors").read_bytes(), result["fm"], result["sub_fm"]


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_two_actors_and_sequential_give_bit_identical_adapters(settings, sequential, tmp_path):
    assert files_of(settings, tmp_path, "pool.kind=ray", "pool.actors=2") == sequential


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("actors", [2, *(pytest.param(number, marks=pytest.mark.cluster) for number in (0, 1))])
def test_data_that_are_sent_or_read_by_each_node_give_a_bit_identical_adapter(settings, sequential, tmp_path, actors):
    shared = [*settings, "task.data=shared", f"cache.dir={tmp_path / 'cache'}"]
    place = ["pool.kind=ray", f"pool.actors={actors}"] if actors else []
    assert files_of(shared, tmp_path, *place) == sequential


def test_another_seed_gives_another_adapter(settings, sequential, tmp_path):
    assert files_of(settings, tmp_path, "seed=43")[0] != sequential[0]


@pytest.mark.parametrize(("interval", "examples"), [(1, 7), pytest.param(100, 0, marks=pytest.mark.cluster)])
def test_again_with_another_evaluation_and_fidelity_meter_gives_a_bit_identical_adapter(
    settings, sequential, tmp_path, interval, examples
):
    looked_at = [f"evaluation.interval={interval}", f"evaluation.fidelity_examples={examples}"]
    assert files_of(settings, tmp_path, *looked_at) == sequential


def test_neuron_alignment_changes_the_run(settings, sequential, tmp_path):
    assert files_of(settings, tmp_path, "align.neurons.kind=none")[:2] != sequential[:2]
