"""Entry point of the ``radtower`` command.

Outside the package on purpose: importing any part of ``radtower`` runs its ``__init__``, which loads PyTorch
and transformers to register the models. The command imports its own modules without that, so that
``--help`` is instant, and loads the models when a command needs them.
"""

import os


def main() -> None:
    """Run the command line."""
    os.environ["RADTOWER_DEFER_MODELS"] = "1"
    from radtower.cli.main import run  # noqa: PLC0415 -- only after the line above

    # Not for the processes that a command starts: they may import radtower for its models.
    del os.environ["RADTOWER_DEFER_MODELS"]
    run()
