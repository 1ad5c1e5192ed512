"""The examples that modules show to their users give what they say."""

import doctest
from types import SimpleNamespace

import pytest

from radtower.hub_cards.metrics.metric_export import metric_names


@pytest.mark.parametrize("name", metric_names())
def test_the_example_of_a_module_is_true(load_module, name):
    examples = doctest.DocTestParser().get_doctest(
        load_module(name).inputs_description, {"evaluate": SimpleNamespace(load=load_module)}, name, None, 0
    )
    assert len(examples.examples) >= 4
    assert doctest.DocTestRunner().run(examples).failed == 0
