import ast

import pytest

import radtower
from radtower.hub_cards.card import TEMPLATES
from radtower.hub_cards.families import FAMILIES, PACKAGE, family_of


def test_refuses_a_model_that_is_not_ours():
    with pytest.raises(KeyError, match=r"got 'clip'. Export such a model"):
        family_of("clip")
    assert family_of("medclip") is FAMILIES["medclip"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_classes_and_files_that_exist(model_type):
    family = FAMILIES[model_type]
    assert (TEMPLATES / family.template).is_file()
    files = {path.stem: path for path in PACKAGE.glob("*/**/*.py")}
    for reference in (family.auto_map | family.processor_auto_map).values():
        module, name = reference.split(".")
        classes = {n.name for n in ast.parse(files[module].read_text()).body if isinstance(n, ast.ClassDef)}
        assert name in classes
    config = family.auto_map["AutoConfig"].split(".")[1]
    assert getattr(radtower, config).model_type == model_type
