import os

import pytest

from fedpft.board.lines import Follower, last_line


def rounds(records):
    return [record["round"] for record in records]


def test_a_line_that_is_still_being_written_waits(tmp_path):
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"round": 1}\n{"rou')
    follower = Follower(path)
    assert (rounds(follower.look()[0]), follower.is_at_end) == ([1], True)
    with path.open("a") as file:
        file.write('nd": 2}\n{"round": 3}\n')
    records, begins = follower.look()
    assert (rounds(records), begins) == ([2, 3], False)
    assert follower.look() == ([], False)


def test_what_is_no_object_is_passed_over(tmp_path):
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(b'\n[1]\nnull\n{"round": 1\n\xff\xfe\n{"round": 2, "fm": NaN}\n' + b"[" * 100_000 + b"\n")
    assert rounds(Follower(path).look()[0]) == [2]


@pytest.mark.parametrize("way", ["another file", "shorter", "in place"])
def test_a_file_that_is_written_anew_begins_anew(tmp_path, way):
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}\n')
    follower = Follower(path)
    follower.look()
    if way == "another file":
        (tmp_path / "new").write_text('{"round": 1}\n{"round": 2}\n{"round": 3}\n')
        (tmp_path / "new").replace(path)
    else:
        path.write_text({"shorter": '{"round": 7}\n', "in place": '{"round": 7}\n{"round": 8}\n'}[way])
    records, begins = follower.look()
    assert begins
    assert rounds(records) == {"another file": [1, 2, 3], "shorter": [7], "in place": [7, 8]}[way]


def test_a_file_that_is_not_there_or_gone_is_empty(tmp_path):
    path = tmp_path / "rounds.jsonl"
    follower = Follower(path)
    assert follower.look() == ([], False)
    path.write_text('{"round": 1}\n')
    follower.look()
    path.unlink()
    assert follower.look() == ([], True)


def test_a_long_file_comes_in_pieces_and_a_line_longer_than_a_piece_whole(tmp_path):
    path = tmp_path / "rounds.jsonl"
    line = '{"round": %d, "client_losses": "' + 400_000 * "x" + '"}\n'
    path.write_text("".join(line % index for index in range(5)) + '{"round": 5, "x": "' + 3_000_000 * "y" + '"}\n')
    follower, found, looks = Follower(path), [], 0
    while not follower.is_at_end:
        found += rounds(follower.look()[0])
        looks += 1
    assert found == [0, 1, 2, 3, 4, 5]
    assert looks > 2


def test_a_pipe_in_place_of_a_file_does_not_make_the_board_wait(tmp_path):
    os.mkfifo(tmp_path / "rounds.jsonl")
    assert Follower(tmp_path / "rounds.jsonl").look() == ([], False)
    assert last_line(tmp_path / "rounds.jsonl") is None


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("", None),
        ('{"round": 1}', None),
        ('{"round": 1}\n{"round": 2', 1),
        ('{"round": 1}\n{"round": 2}\nnot JSON\n', 2),
        ('{"round": 1}\n{"round": 2, "x": "' + 100_000 * "y" + '"}\n', 2),
    ],
)
def test_the_last_whole_line_is_found_from_the_end(tmp_path, text, last):
    (tmp_path / "rounds.jsonl").write_text(text)
    assert (last_line(tmp_path / "rounds.jsonl") or {}).get("round") == last
