import pytest

from radtower.evaluation.zero_shot.protocol import class_set_name, load_protocol
from radtower.labeling.findings import load_findings

CT_RATE = load_findings("ct_rate_18")
VOLUME_SHOWS = ("The volume shows: {finding}.", "The volume shows: Not {finding_lower}.")


def written(folder, **changes):
    lines = {"name": "mine", "source": "me", "asked": "ct_rate_18", "prompts": "not", **changes}
    (folder / "mine.yaml").write_text("\n".join(f"{name}: {value}" for name, value in lines.items()))
    return folder / "mine.yaml"


@pytest.mark.parametrize(
    ("name", "num_asked", "num_labels", "prompts", "split", "paper"),
    [
        ("ct_rate_18", 18, 18, ("is_present",), "test", "2403.17834"),
        ("ct_rate_16", 16, 16, (VOLUME_SHOWS,), "test", "2505.21862"),
        ("rad_chestct_16", 17, 16, ("is_present",), "all", "2403.17834"),
        ("rad_chestct_15", 15, 15, (VOLUME_SHOWS,), "all", "2505.21862"),
    ],
)
def test_the_shipped_protocols(name, num_asked, num_labels, prompts, split, paper):
    protocol = load_protocol(name)
    assert (len(protocol.asked_keys), len(protocol.labels.keys)) == (num_asked, num_labels)
    assert protocol.labels == load_findings(name)
    assert (protocol.prompts, protocol.split) == (prompts, split)
    assert (protocol.phrases, protocol.score, protocol.unit) == ("name", "softmax", "volume")
    assert paper in protocol.source


def test_what_is_asked_is_named_as_published_or_by_the_first_prompt():
    protocol = load_protocol("rad_chestct_16")
    assert "mosaic_attenuation_pattern" not in protocol.asked_keys
    assert protocol.asked_phrases[:2] == ("Medical material", "Arterial wall calcification")
    assert protocol.overridden(phrases="prompt").asked_phrases[:2] == (
        "medical material",
        "arterial wall calcification",
    )
    assert [s.name for s in load_protocol("ct_rate_18").class_sets] == ["ct_rate_16"]


def test_what_was_used_is_said():
    protocol = load_protocol("ct_rate_18")
    assert protocol.description == "ct_rate_18: prompts is_present of finding names, softmax, per volume"
    changed = protocol.overridden(
        prompts=["seed", "not"], score="mean_softmax", unit="study", split="validation", phrases="prompt"
    )
    assert changed.description == (
        "ct_rate_18: prompts seed + not of finding prompts, mean softmax, per study"
    )
    assert changed.split == "validation"
    assert protocol.overridden(prompts=None, score=None) == protocol
    assert '"The volume shows: {finding}." / "The' in load_protocol("rad_chestct_15").description


def test_a_protocol_of_ones_own(tmp_path):
    (tmp_path / "two.yaml").write_text("name: two\nbase: ct_rate_18\nkeys: [lung_nodule, cardiomegaly]\n")
    (tmp_path / "ct_rate_18_to_two.yaml").write_text(
        "source: ct_rate_18\ntarget: two.yaml\nsame: [cardiomegaly]\n"
        "findings: {lung_nodule: {sources: [lung_nodule, consolidation]}}\n"
    )
    path = written(
        tmp_path, labels="two.yaml", mapping="ct_rate_18_to_two.yaml",
        prompts='[seed, ["{finding} is seen.", "No {finding}."]]', score="margin", unit="study",
        split="validation", phrases="prompt",
    )  # fmt: skip
    protocol = load_protocol(path)
    assert protocol.asked_keys == ("cardiomegaly", "lung_nodule", "consolidation")
    assert protocol.labels.keys == ("lung_nodule", "cardiomegaly")
    assert protocol.prompts == ("seed", ("{finding} is seen.", "No {finding}."))
    assert (protocol.score, protocol.unit, protocol.split) == ("margin", "study", "validation")
    usual = load_protocol(written(tmp_path))
    assert usual.labels == usual.asked == CT_RATE
    assert usual.mapping is None
    assert (usual.phrases, usual.score, usual.unit, usual.split) == ("name", "softmax", "volume", "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": "rad_chestct_16", "mapping": "ct_rate_18_to_ct_rate_16"},
            "lead from 'ct_rate_18' to 'rad_",
        ),
        (
            {"labels": "rad_chestct_columns"},
            "shipped mapping of findings or a YAML file, got 'ct_rate_18_to_rad_c",
        ),
        ({"further_class_sets": "[ct_rate_18]"}, "others than labels, each once, got ct_rate_18, ct_rate_18"),
        ({"further_class_sets": "[ct_rate_16, ct_rate_16]"}, "each once, got ct_rate_18, ct_rate_16, ct_r"),
        ({"further_class_sets": "[chexpert_14]"}, r"findings of 'ct_rate_18', got \['edema'"),
        ({"prompts": "has"}, r"prompts must be 'ensemble' or one of .* got 'has'"),
        ({"prompts": "[]"}, "prompts must be at least one pair"),
        ({"prompts": "3"}, "prompts must be a name or a list, got 3"),
        ({"prompts": "[3]"}, "names or pairs of two texts, got 3"),
        ({"prompts": "[[a, b]]"}, r"must hold \{finding\}"),
        ({"score": "max"}, "score must fit its field, got 'max' in mine.yaml"),
        ({"unit": "case"}, "unit must fit its field, got 'case'"),
        ({"split": "valid"}, "split must fit its field, got 'valid'"),
        ({"phrases": "words"}, "phrases must fit its field, got 'words'"),
        ({"extra": "1"}, "extra must fit its field, got 1 .* Extra inputs"),
        ({"name": "''"}, "name must fit its field, got '' "),
        ({"asked": "many"}, "a shipped findings set or a YAML file, got 'many'"),
    ],
)
def test_a_protocol_that_is_none_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_protocol(written(tmp_path, **changes))


def test_unknown_names_and_changes_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"shipped zero-shot protocol or a YAML file, got 'ct_rate'.*rad_chestct_15"
    ):
        load_protocol("ct_rate")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(TypeError, match="a zero-shot protocol must be a table of keys, got list"):
        load_protocol(tmp_path / "list.yaml")
    protocol = load_protocol("ct_rate_18")
    with pytest.raises(ValueError, match=r"changes must be of phrases, .* got \['name'\]"):
        protocol.overridden(name="other")
    with pytest.raises(ValueError, match="score must fit its field, got 'max' in ct_rate_18"):
        protocol.overridden(score="max")
    with pytest.raises(ValueError, match="mapping must be named where asked and labels differ"):
        type(protocol).model_validate({**dict(protocol), "labels": load_findings("ct_rate_16")})


def test_class_sets_are_named(tmp_path):
    assert class_set_name(CT_RATE, 18) == "ct_rate_18"
    assert class_set_name(CT_RATE, 17) == "17 of 18 findings of ct_rate_18"
    own = CT_RATE.subset(["lung_nodule"]).model_copy(update={"name": "ct_rate_18"})
    assert class_set_name(own, 1) == own.identity
    assert own.identity.startswith("ct_rate_18 ")
