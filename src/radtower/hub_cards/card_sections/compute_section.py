"""What a card says about compute and emissions: recorded hours, and an assumed power that it names."""

from typing import Any

from radtower.hub_cards.card_sections.training_section import NOT_RECORDED

# Assumptions, and upper ones: an A100 may draw 400 W (its data sheet), a server CPU about a hundred.
GPU_WATTS, CPU_WATTS = 400, 100
GRAMS_PER_KWH = 480  # of the electricity of the world in 2023 (Ember, Global Electricity Review 2024)


def compute_table(record: dict[str, Any]) -> str:
    """Return a Markdown table; without recorded hours there is no energy and no CO2."""
    compute = record.get("compute") or {}
    versions = record.get("versions") or {}
    device, processes, hours = (compute.get(name) for name in ("device", "num_processes", "hours"))
    energy = emissions = NOT_RECORDED
    if device is not None and processes is not None and hours is not None:
        watts = CPU_WATTS if str(device).startswith("cpu") else GPU_WATTS
        kwh = hours * processes * watts / 1000
        energy = f"{kwh:.3g} kWh, if each process draws {watts} W: assumed, not measured"
        emissions = (
            f"{kwh * GRAMS_PER_KWH / 1000:.3g} kg, at {GRAMS_PER_KWH} g per kWh: assumed, the mean of the "
            "world in 2023"
        )
    rows = {
        "device of a process": device,
        "processes": processes,
        "hours": hours,
        "software": ", ".join(f"{name} {number}" for name, number in versions.items()) or None,
        "energy, estimate": energy,
        "CO2, estimate": emissions,
    }
    lines = [f"| {name} | {NOT_RECORDED if value is None else value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
