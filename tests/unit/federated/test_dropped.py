from fedpft.federated.dropped import never_through


def test_clients_that_never_came_through_are_those_dropped_from_every_round_they_were_in():
    records = [
        {"clients": [0, 2], "dropped": [1, 3]},
        {"clients": [1]},
        {"clients": [], "dropped": [0, 7]},
    ]
    assert never_through(records) == [3, 7]
    assert never_through([{"clients": [5]}]) == never_through([]) == []
