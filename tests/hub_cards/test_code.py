import pytest

from radtower.hub_cards.code import export_code
from radtower.hub_cards.families import FAMILIES, PACKAGE


def _export(tmp_path, code, name="modeling_x.py"):
    (tmp_path / name).write_text(code)
    (tmp_path / "out").mkdir(exist_ok=True)
    return export_code([tmp_path / name], tmp_path / "out")


def test_follows_imports_and_flattens_them(tmp_path):
    for folder in ("configuration", "modeling", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "configuration" / "configuration_x.py").write_text("import math\nSIZE = 3\n")
    (tmp_path / "modeling" / "losses.py").write_text("from torch import nn\n")
    source = tmp_path / "modeling" / "modeling_x.py"
    source.write_text(
        '"""A model."""\n\n'
        "from ..configuration.configuration_x import SIZE\n"
        "from .losses import (\n    nn,\n)\n"
        "VALUE = SIZE\n"
    )
    written = export_code([source], tmp_path / "out")
    assert [path.name for path in written] == ["configuration_x.py", "losses.py", "modeling_x.py"]
    assert (tmp_path / "out" / "modeling_x.py").read_text() == (
        '"""A model."""\n\n'
        "from .configuration_x import SIZE\n"
        "from .losses import (\n    nn,\n)\n"
        "VALUE = SIZE\n"
    )
    assert (tmp_path / "out" / "losses.py").read_text() == "from torch import nn\n"


@pytest.mark.parametrize(
    ("line", "package", "code"),
    [
        (2, "nibabel", "def read(path):\n    import nibabel\n    return nibabel.load(path)\n"),
        (3, "einops", "import typing\nif typing.TYPE_CHECKING:\n    from einops.layers import torch\n"),
        (1, "radtower", "from radtower.modeling.losses import x\n"),
        (2, "numpy", "import os\nimport json, numpy\n"),
    ],
)
def test_refuses_a_file_that_imports_what_a_hub_user_may_lack(tmp_path, line, package, code):
    with pytest.raises(ValueError, match=rf"modeling_x\.py:{line} imports {package}, "):
        _export(tmp_path, code)


def test_allows_what_every_hub_user_has(tmp_path):
    code = "import collections.abc\nimport torch.nn\nfrom transformers import x\nimport huggingface_hub\n"
    assert _export(tmp_path, code)[0].read_text() == code


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (1, "from . import layers\n"),
        (2, "def build():\n    from .layers import Block\n    return Block\n"),
        (2, "import os\nfrom .layers import *\n"),
    ],
)
def test_refuses_a_relative_import_that_cannot_be_flattened(tmp_path, line, code):
    with pytest.raises(ValueError, match=rf"modeling_x\.py:{line} .*from \.module import name"):
        _export(tmp_path, code)


def test_refuses_text_that_transformers_would_follow(tmp_path):
    code = '"""A model.\n\n    from .not_a_file import nothing\n"""\n'
    with pytest.raises(ValueError, match=r"modeling_x\.py:3 has text that reads like a relative import"):
        _export(tmp_path, code)


def test_refuses_two_files_of_one_name(tmp_path):
    for folder in ("a", "b", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "layers.py").write_text("")
    (tmp_path / "b" / "layers.py").write_text("")
    with pytest.raises(ValueError, match=r"unique names, got .*b.layers\.py and .*a.layers\.py"):
        export_code([tmp_path / "a" / "layers.py", tmp_path / "b" / "layers.py"], tmp_path / "out")


def test_overwrites_the_code_of_an_earlier_export(tmp_path):
    _export(tmp_path, "OLD = True\n")
    assert _export(tmp_path, "NEW = True\n")[0].read_text() == "NEW = True\n"


CODE_FILES = {
    "ct3d_vision": [
        "configuration_ct3d.py",
        "image_processing_ct3d.py",
        "image_processing_ct3d_settings.py",
        "image_processing_resampling.py",
        "losses.py",
        "modeling_ct3d.py",
        "modeling_ct3d_blocks.py",
        "modeling_ct3d_import.py",
        "modeling_ct3d_winograd.py",
    ],
    "llm_biencoder": [
        "configuration_llm_biencoder.py",
        "losses.py",
        "modeling_attention_direction.py",
        "modeling_causal_layers.py",
        "modeling_cpu_linear.py",
        "modeling_encode_batches.py",
        "modeling_finding_attention.py",
        "modeling_inner_outputs.py",
        "modeling_latent_attention.py",
        "modeling_layer_states.py",
        "modeling_llm_biencoder.py",
        "modeling_llm_biencoder_base.py",
        "modeling_llm_biencoder_heads.py",
        "modeling_llm_biencoder_mntp.py",
        "modeling_llm_files.py",
        "modeling_llm_import.py",
        "modeling_llm_lora.py",
        "modeling_llm_st_folder.py",
        "modeling_loaded_from.py",
        "modeling_prompted_decoder.py",
        "modeling_sentence_bounds.py",
        "modeling_soft_prompt.py",
        "modeling_text_inputs.py",
        "modeling_vector_precision.py",
    ],
    "medclip": [
        "configuration_ct3d.py",
        "configuration_llm_biencoder.py",
        "configuration_medclip.py",
        "image_processing_2d.py",
        "image_processing_ct3d.py",
        "image_processing_ct3d_settings.py",
        "image_processing_resampling.py",
        "losses.py",
        "modeling_attention_direction.py",
        "modeling_causal_layers.py",
        "modeling_cpu_linear.py",
        "modeling_ct3d.py",
        "modeling_ct3d_blocks.py",
        "modeling_ct3d_import.py",
        "modeling_ct3d_winograd.py",
        "modeling_encode_batches.py",
        "modeling_inner_outputs.py",
        "modeling_joint_space.py",
        "modeling_latent_attention.py",
        "modeling_llm_biencoder.py",
        "modeling_llm_biencoder_base.py",
        "modeling_llm_files.py",
        "modeling_llm_import.py",
        "modeling_llm_lora.py",
        "modeling_llm_st_folder.py",
        "modeling_loaded_from.py",
        "modeling_medclip.py",
        "modeling_medclip_output.py",
        "modeling_pair_losses.py",
        "modeling_pair_objective.py",
        "modeling_pair_relation.py",
        "modeling_prompted_decoder.py",
        "modeling_soft_prompt.py",
        "modeling_text_inputs.py",
        "modeling_towers.py",
        "modeling_vector_precision.py",
        "modeling_zero_shot.py",
        "processing_call_settings.py",
        "processing_medclip.py",
    ],
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_exports_exactly_these_files(tmp_path, model_type):
    written = export_code([PACKAGE / name for name in FAMILIES[model_type].model_files], tmp_path)
    assert [path.name for path in written] == CODE_FILES[model_type]
    for path in written:
        text = path.read_text()
        assert "from .." not in text
        assert "import radtower" not in text


def test_follows_absolute_imports_of_a_named_package_only(tmp_path):
    package = tmp_path / "ours"
    for folder in (package / "a" / "b", tmp_path / "out"):
        folder.mkdir(parents=True)
    (package / "a" / "b" / "deep.py").write_text("import numpy\nSIZE = 3\n")
    source = package / "a" / "top.py"
    source.write_text("from ours.a.b.deep import (\n    SIZE,\n)\nfrom .b.deep import numpy\n")
    allowed = frozenset({"numpy"})
    written = export_code([source], tmp_path / "out", package=package, allowed_packages=allowed)
    assert [path.name for path in written] == ["deep.py", "top.py"]
    assert written[1].read_text() == "from .deep import (\n    SIZE,\n)\nfrom .deep import numpy\n"
    with pytest.raises(ValueError, match=r"top\.py:1 imports ours, which a Hub user may not have"):
        export_code([source], tmp_path / "out", allowed_packages=allowed)
    source.write_text("from oursother import x\n")
    with pytest.raises(ValueError, match=r"top\.py:1 imports oursother"):
        export_code([source], tmp_path / "out", package=package, allowed_packages=allowed)
