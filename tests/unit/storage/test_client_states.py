import numpy as np
import pytest

from fedpft.config import ConfigError
from fedpft.interrupt import RunStoppedError
from fedpft.storage.client_states import ClientStatesOnDisk


def state(value):
    return {"variate": np.full(5, value, np.float32), "more": np.arange(3)}


def files(folder):
    return sorted(path.name for path in (folder / "clients").iterdir())


def filled(folder, rounds):
    """Return states of clients, each written in some rounds."""
    states = ClientStatesOnDisk(folder)
    for client_id, written in rounds.items():
        for round_index in written:
            states.write(client_id, round_index, state(100 * client_id + round_index))
    return states


def test_what_was_written_comes_back_from_another_process(tmp_path):
    filled(tmp_path, {3: [1, 4]})
    found = ClientStatesOnDisk(tmp_path, rounds_done=4).read(3, 1)
    assert {name: array.tolist() for name, array in found.items()} == {"variate": [301.0] * 5, "more": [0, 1, 2]}


def test_what_is_newer_than_the_checkpoint_never_happened(tmp_path):
    filled(tmp_path, {0: [1, 2, 3], 12: [3]})
    (tmp_path / "clients/client-0-round-2.safetensors.tmp").write_text("half")
    ClientStatesOnDisk(tmp_path, rounds_done=2)
    assert files(tmp_path) == ["client-0-round-1.safetensors", "client-0-round-2.safetensors"]


def test_what_one_of_the_checkpoints_needs_stays(tmp_path):
    states = filled(tmp_path, {0: [1, 2, 3, 4], 1: [1], 2: [4]})
    states.prune(3)
    assert files(tmp_path) == [
        f"client-{name}.safetensors" for name in ("0-round-3", "0-round-4", "1-round-1", "2-round-4")
    ]
    states.prune(3)
    assert len(files(tmp_path)) == 4


def test_a_round_is_forgotten_alone(tmp_path):
    filled(tmp_path, {0: [1, 2], 1: [2]}).forget(2)
    assert files(tmp_path) == ["client-0-round-1.safetensors"]


@pytest.mark.parametrize("spoil", ["gone", "cut", "altered"])
def test_a_file_that_is_not_as_it_was_written_is_an_error_of_one_line(tmp_path, spoil):
    states = filled(tmp_path, {7: [2]})
    path = tmp_path / "clients/client-7-round-2.safetensors"
    data = path.read_bytes()
    path.unlink()
    if spoil != "gone":
        path.write_bytes(data[:-1] if spoil == "cut" else data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(ConfigError, match=r"^output_dir: found '.*client-7-round-2\.safetensors' altered or gone"):
        states.read(7, 2)


def test_a_disk_that_takes_nothing_ends_the_run_with_one_line(tmp_path):
    (tmp_path / "clients").write_text("no folder")
    with pytest.raises(RunStoppedError, match=r"^the state of client 1 cannot be kept: .*"):
        ClientStatesOnDisk(tmp_path).write(1, 1, state(1))
