"""Common tests that are not for our classes, each with its reason."""

import unittest
from collections.abc import Callable, Mapping

OURS = "RadTower: "  # in front of our reasons; the others are those of transformers


def not_for_us(*reasons: Mapping[str, str]) -> Callable[[type], type]:
    """Skip tests of a class: name of the test -> reason.

    Raises:
        AttributeError: If the class has no such test; a newer release may have renamed it.
    """

    def mark(test_class: type) -> type:
        for name, reason in {name: reason for part in reasons for name, reason in part.items()}.items():
            setattr(test_class, name, unittest.skip(OURS + reason)(getattr(test_class, name)))
        return test_class

    return mark
