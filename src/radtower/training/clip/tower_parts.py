"""Where the layers of a tower are, whatever its family."""

from torch import nn


def find_layers(tower: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return name and list of the layers that a tower runs one after another.

    That is the longest of the lists that lie in no other: decoder layers, encoder blocks, or the stages of a
    convolutional network.

    Raises:
        ValueError: If there is none, or two are equally long.
    """
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in tower.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if isinstance(module, nn.ModuleList) and len(module) and not is_inside:
            outermost[name] = module
    longest = max((len(layers) for layers in outermost.values()), default=0)
    found = [(name, layers) for name, layers in outermost.items() if len(layers) == longest]
    if len(found) != 1:
        raise ValueError(
            f"a tower must have one list of layers, got {[name for name, _ in found]} in "
            f"{type(tower).__name__}. Use mode 'frozen' or 'full' for it."
        )
    return found[0]
