"""The way to the files in bad weather: no name, no answer for long, silence, cuts. See `test_bad_weather`."""

from __future__ import annotations

import os

from weather import Weather, lines_of


def test_a_name_that_can_no_longer_be_resolved(weather: Weather) -> None:
    (weather.root / "given").write_text("given")
    weather.move_to(weather.address.replace("127.0.0.1", "no-such-host.invalid"))
    run = weather.begin(weather.makes("named", requirements=["given"]))
    weather.why("named", "the name of the datastore", "cannot be resolved")
    weather.move_to(weather.address)
    weather.ends(run, "named")


def test_a_link_that_is_slow_to_answer(weather: Weather) -> None:
    weather.proxy.delay_s = 0.2
    weather.sshd.cut()
    ids = [f"far{number}" for number in range(12)]
    (weather.root / "input").write_bytes(os.urandom(500_000))
    run = weather.begin(*(weather.makes(id, requirements=[["input", "in"]]) for id in ids))
    weather.ends(run, *ids)


def test_a_link_that_stalls(weather: Weather) -> None:
    ids = [f"stalls{number}" for number in range(4)]
    run = weather.begin(*(weather.makes(id, gate="stalls") for id in ids))
    weather.runs(*ids)
    weather.proxy.hold()
    weather.open("stalls")
    weather.why(ids[0], "results cannot be stored", "stalled: nothing moved for 5 s")
    weather.proxy.let_go()
    weather.ends(run, *ids)


def test_a_link_that_is_cut_every_twenty_megabytes(weather: Weather) -> None:
    lines = lines_of("cut", 50_000_000)
    weather.proxy.cut_every = 20_000_000
    weather.sshd.cut()
    before = weather.proxy.connections
    reads = {"id": "reads", "commands": "wc -c < in", "dependencies": ["cut"], "requirements": [["made/cut", "in"]]}
    run = weather.begin(weather.makes("cut", lines), reads)
    weather.ends(run, "cut", "reads", lines=lines)
    assert weather.proxy.connections - before >= 4
