"""The label that says: unknown. In a file of its own: exported metrics need nothing else of ours."""

MASKED_TARGET = -100.0  # the ignore index of PyTorch; the losses skip it
