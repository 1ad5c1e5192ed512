"""Energy follows from recorded hours and a power that the card names; without hours there is none."""

import pytest

from radtower.hub_cards.card_sections.compute_section import compute_table


@pytest.mark.parametrize(
    ("device", "energy", "emissions"),
    [
        ("NVIDIA A100-SXM4-80GB", "16 kWh, if each process draws 400 W", "7.68 kg"),
        ("cpu, x86_64", "4 kWh", "1.92 kg"),
    ],
)
def test_energy_is_hours_by_processes_by_an_assumed_power(device, energy, emissions):
    record = {
        "compute": {"device": device, "num_processes": 4, "hours": 10.0},
        "versions": {"radtower": "0.1.0", "torch": "2.13.0"},
    }
    table = compute_table(record)
    assert f"| device of a process | {device} |\n| processes | 4 |\n| hours | 10.0 |" in table
    assert "| software | radtower 0.1.0, torch 2.13.0 |" in table
    assert f"| energy, estimate | {energy}" in table
    assert f"| CO2, estimate | {emissions}, at 480 g per kWh: assumed" in table


@pytest.mark.parametrize("compute", [None, {"device": "cpu", "num_processes": 1, "hours": None}])
def test_without_hours_there_is_no_energy(compute):
    table = compute_table({"compute": compute})
    assert "| hours | not recorded |" in table
    assert "| energy, estimate | not recorded |\n| CO2, estimate | not recorded |" in table
    assert "kWh" not in table
