import csv
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from radtower.labeling import findings as findings_module
from radtower.labeling.findings import Finding, FindingsSet, Status, load_findings, match_finding

SHIPPED = sorted(path.stem for path in Path(findings_module.__file__).with_name("findings").glob("*.yaml"))


def make_finding(key: str, **fields: object) -> Finding:
    return Finding.model_validate(
        {"key": key, "name": key.title(), "definition": "d", "prompts": ("p",), **fields}
    )


def test_ct_rate_18_keeps_the_column_order_of_the_published_tables():
    findings = load_findings("ct_rate_18")
    assert len(findings.findings) == 18
    assert findings.names[:2] == ("Medical material", "Arterial wall calcification")
    assert findings.names[4] == "Coronary artery wall calcification"
    assert findings.names[12] == "Pleural effusion"
    assert findings.names[17] == "Interlobular septal thickening"
    assert findings.keys[11] == "pulmonary_fibrotic_sequela"
    assert list(findings.keys) == [name.lower().replace(" ", "_") for name in findings.names]


def test_ct_rate_18_names_equal_the_header_of_the_real_table():
    data = os.environ.get("RADTOWER_REAL_DATA")
    if data is None:
        pytest.skip("RADTOWER_REAL_DATA is not set")
    with (Path(data) / "ct_label_tables" / "ctrate_valid_labels.csv").open() as file:
        header = next(csv.reader(file))
    assert tuple(header[1:]) == load_findings("ct_rate_18").names


def test_the_shipped_sets_have_their_published_sizes():
    assert {name: len(load_findings(name).keys) for name in SHIPPED} == {
        "chexpert_14": 14,
        "ct_rate_16": 16,
        "ct_rate_18": 18,
        "rad_chestct_15": 15,
        "rad_chestct_16": 16,
        "rad_chestct_columns": 15,
    }
    assert all(load_findings(name).name == name for name in SHIPPED)


def test_the_wording_of_ct_rate_18_is_the_one_that_labels_were_made_with():
    # A change starts a new generation of labels everywhere: release it on purpose, or not at all.
    assert load_findings("ct_rate_18").fingerprint == "15ad00289b52"


def test_ct_rate_16_is_ct_rate_18_without_two():
    whole, part = load_findings("ct_rate_18"), load_findings("ct_rate_16")
    assert [key for key in whole.keys if key not in part.keys] == ["medical_material", "lymphadenopathy"]
    assert part.findings == whole.subset(part.keys).findings


@pytest.mark.parametrize("name", ["ct_rate_18", "ct_rate_16", "rad_chestct_15"])
def test_coronary_calcification_is_no_part_of_a_finding_that_leaves_the_coronary_arteries_out(name):
    findings = load_findings(name).by_key
    assert "not a coronary artery" in findings["arterial_wall_calcification"].definition
    assert findings["coronary_artery_wall_calcification"].parent is None
    assert [key for key, finding in findings.items() if finding.parent] == ["consolidation"]


def test_rad_chestct_16_joins_the_calcifications():
    whole, part = load_findings("ct_rate_18"), load_findings("rad_chestct_16")
    assert part.keys == tuple(
        key
        for key in whole.keys
        if key not in ("mosaic_attenuation_pattern", "coronary_artery_wall_calcification")
    )
    joined = part.by_key["arterial_wall_calcification"]
    assert "coronary artery" in joined.definition
    assert "coronary" not in whole.by_key["arterial_wall_calcification"].definition.split("not a")[0]
    assert joined.name == "Arterial wall calcification"


def test_chexpert_14_keeps_the_columns_and_the_hierarchy():
    findings = load_findings("chexpert_14")
    assert findings.names == (
        "No Finding",
        "Enlarged Cardiomediastinum",
        "Cardiomegaly",
        "Lung Opacity",
        "Lung Lesion",
        "Edema",
        "Consolidation",
        "Pneumonia",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Pleural Other",
        "Fracture",
        "Support Devices",
    )
    assert list(findings.keys) == [name.lower().replace(" ", "_") for name in findings.names]
    assert {finding.key: finding.parent for finding in findings.findings if finding.parent} == {
        "cardiomegaly": "enlarged_cardiomediastinum",
        "lung_lesion": "lung_opacity",
        "edema": "lung_opacity",
        "consolidation": "lung_opacity",
        "pneumonia": "consolidation",
        "atelectasis": "lung_opacity",
    }


def test_the_sets_of_rad_chestct_equal_the_real_table():
    data = os.environ.get("RADTOWER_REAL_DATA")
    if data is None:
        pytest.skip("RADTOWER_REAL_DATA is not set")
    with (Path(data) / "ct_label_tables" / "rad_chestct_labels.csv").open() as file:
        header = next(csv.reader(file))
    assert tuple(header[1:]) == load_findings("rad_chestct_15").names


def test_a_finding_knows_how_it_is_asked_for_and_its_parent():
    findings = load_findings("ct_rate_18").by_key
    assert findings["pleural_effusion"].prompts[0] == "pleural effusion"
    assert findings["consolidation"].parent == "lung_opacity"
    assert findings["emphysema"].parent is None


def test_there_are_exactly_four_states():
    assert list(Status) == ["present", "absent", "uncertain", "not_mentioned"]


def test_subset_keeps_the_order_given_and_drops_a_missing_parent():
    subset = load_findings("ct_rate_18").subset(["emphysema", "consolidation"])
    assert subset.keys == ("emphysema", "consolidation")
    assert subset.name == "ct_rate_18[emphysema,consolidation]"
    assert subset.by_key["consolidation"].parent is None
    both = load_findings("ct_rate_18").subset(["consolidation", "lung_opacity"])
    assert both.by_key["consolidation"].parent == "lung_opacity"


def test_subset_of_everything_is_the_set_itself():
    findings = load_findings("ct_rate_18")
    assert findings.subset(findings.keys) is findings


def test_subset_refuses_an_unknown_key():
    with pytest.raises(KeyError, match="'cardiomegalia'"):
        load_findings("ct_rate_18").subset(["emphysema", "cardiomegalia"])


def test_an_unknown_set_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"'ct_rate_19'\. Shipped: .*ct_rate_18"):
        load_findings("ct_rate_19")


def test_a_users_own_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nfindings:\n- {key: goiter, name: Goiter, definition: Big., prompts: [goiter]}\n"
    )
    findings = load_findings(path)
    assert findings.name == "mine"
    assert findings.by_key["goiter"].definition == "Big."


def test_duplicate_keys_are_refused():
    with pytest.raises(ValidationError, match=r"key must be unique.*\['mass'\]"):
        FindingsSet(name="x", findings=(make_finding("mass"), make_finding("mass", name="Other")))


def test_duplicate_names_are_refused():
    with pytest.raises(ValidationError, match=r"name must be unique.*\['Mass'\]"):
        FindingsSet(name="x", findings=(make_finding("mass"), make_finding("lump", name="Mass")))


def test_a_parent_outside_the_set_is_refused():
    with pytest.raises(ValidationError, match="got 'lump' for 'mass'"):
        FindingsSet(name="x", findings=(make_finding("mass", parent="lump"),))


@pytest.mark.parametrize(
    ("parents", "circle"),
    [
        ({"mass": "mass"}, "mass -> mass"),
        ({"mass": "lump", "lump": "mass"}, "mass -> lump -> mass"),
        ({"scar": "mass", "mass": "lump", "cyst": "mass", "lump": "cyst"}, "mass -> lump -> cyst -> mass"),
    ],
)
def test_parents_in_a_circle_are_refused(parents, circle):
    findings = tuple(make_finding(key, parent=parent) for key, parent in parents.items())
    with pytest.raises(ValidationError, match=rf"got a circle: {circle}\. Set one"):
        FindingsSet(name="x", findings=findings)


def test_parents_may_have_parents():
    parents = {"cyst": "mass", "scar": "mass", "mass": "lump", "lump": None}
    findings = tuple(make_finding(key, parent=parent) for key, parent in parents.items())
    assert FindingsSet(name="x", findings=findings).by_key["cyst"].parent == "mass"


def test_a_key_must_be_snake_case():
    with pytest.raises(ValidationError, match="Pleural effusion"):
        make_finding("Pleural effusion")


def test_the_fingerprint_changes_with_the_wording():
    one = FindingsSet(name="x", findings=(make_finding("mass"),))
    other = FindingsSet(name="x", findings=(make_finding("mass", definition="e"),))
    assert len(one.fingerprint) == 12
    assert one.fingerprint == FindingsSet(name="x", findings=(make_finding("mass"),)).fingerprint
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("pleural_effusion", "pleural_effusion"),
        ("Pleural effusion", "pleural_effusion"),
        ("  PLEURAL-effusion ", "pleural_effusion"),
        ("enlarged heart", "cardiomegaly"),
        ("my own finding", "my_own_finding"),
    ],
)
def test_a_finding_is_matched_by_key_name_or_synonym(text, key):
    keys = ["cardiomegaly", "pleural_effusion", "my_own_finding"]
    assert match_finding(text, keys, load_findings("ct_rate_18")) == key


def test_a_finding_that_cannot_be_chosen_is_refused_with_the_list():
    findings = load_findings("ct_rate_18")
    with pytest.raises(
        KeyError, match="one of lung_nodule, cardiomegaly, got 'pleural effusion', which is of 0"
    ):
        match_finding("pleural effusion", ["lung_nodule", "cardiomegaly"], findings)


def test_a_synonym_that_two_findings_share_is_refused():
    findings = FindingsSet(
        name="two",
        findings=(make_finding("one", synonyms=("fluid",)), make_finding("other", synonyms=("Fluid",))),
    )
    with pytest.raises(KeyError, match="got 'fluid', which is of 2"):
        match_finding("fluid", findings.keys, findings)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_name_or_synonym_of_a_shipped_list_is_shared(name):
    findings = load_findings(name)
    for finding in findings.findings:
        for word in (finding.key, finding.name, *finding.synonyms):
            assert match_finding(word, findings.keys, findings) == finding.key


BASE = """
name: base
findings:
- {key: mass, name: Mass, definition: Big., synonyms: [lump], prompts: [mass]}
- {key: cyst, name: Cyst, definition: Fluid., prompts: [cyst], parent: mass}
- {key: scar, name: Scar, definition: Old., prompts: [scar]}
"""


def test_a_list_is_built_on_another_beside_it(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "base.yaml").write_text(BASE)
    path = tmp_path / "lists" / "mine.yaml"
    path.write_text(
        "name: mine\nbase: base.yaml\nkeys: [goiter, cyst, scar]\n"
        "overrides: {scar: {name: Scars, parent: goiter}}\n"
        "findings:\n- {key: goiter, name: Goiter, definition: Neck., prompts: [goiter]}\n"
    )
    findings = load_findings(path)
    assert (findings.name, findings.keys) == ("mine", ("goiter", "cyst", "scar"))
    assert findings.names == ("Goiter", "Cyst", "Scars")
    assert findings.by_key["cyst"].parent is None  # mass was left out
    assert findings.by_key["scar"].parent == "goiter"
    assert findings.by_key["scar"].definition == "Old."


def test_without_keys_the_base_comes_first_and_whole(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nbase: base.yaml\nfindings:\n- {key: a, name: A, definition: d, prompts: [a]}\n"
    )
    assert load_findings(path).keys == ("mass", "cyst", "scar", "a")
    assert load_findings(path).by_key["cyst"].parent == "mass"
    path.write_text("name: mine\nbase: ct_rate_16\n")
    assert load_findings(path).findings == load_findings("ct_rate_16").findings


@pytest.mark.parametrize("field", ["keys: [mass, lump]", "overrides: {lump: {name: Lump}}"])
def test_a_finding_that_the_base_has_not_is_refused(tmp_path, field):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "mine.yaml").write_text(f"name: mine\nbase: base.yaml\n{field}\n")
    name = field.partition(":")[0]
    message = rf"{name} of 'mine' must be findings .*got \['lump'\]\. There are mass, cyst, scar"
    with pytest.raises(KeyError, match=message):
        load_findings(tmp_path / "mine.yaml")


def test_overrides_without_a_base_are_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{BASE}overrides: {{mass: {{name: M}}}}\n")
    with pytest.raises(KeyError, match=r"got \['mass'\]\. There are none"):
        load_findings(tmp_path / "mine.yaml")


def test_a_finding_of_the_base_written_out_again_is_refused(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nbase: base.yaml\nfindings:\n- {key: cyst, name: C, definition: d, prompts: [c]}\n"
    )
    with pytest.raises(ValueError, match=r"base of 'mine' has not, got \['cyst'\].*overrides"):
        load_findings(tmp_path / "mine.yaml")


def test_a_key_chosen_twice_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{BASE}keys: [scar, scar]\n")
    with pytest.raises(ValueError, match=r"key must be unique.*\['scar'\]"):
        load_findings(tmp_path / "mine.yaml")


def test_a_parent_that_the_file_itself_leaves_out_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{BASE}keys: [cyst, scar]\n")
    with pytest.raises(ValueError, match="got 'mass' for 'cyst'"):
        load_findings(tmp_path / "mine.yaml")


@pytest.mark.parametrize("length", [1, 3])
def test_lists_built_on_each_other_are_refused(tmp_path, length):
    for number in range(length):
        (tmp_path / f"list{number}.yaml").write_text(f"name: x\nbase: list{(number + 1) % length}.yaml\n")
    chain = " -> ".join(f"list{number % length}" for number in range(length + 1))
    with pytest.raises(ValueError, match=f"must not be built on itself, got {chain}"):
        load_findings(tmp_path / "list0.yaml")


def test_a_base_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nbase: gone.yaml\n")
    with pytest.raises(ValueError, match=r"got 'gone.yaml'\. Shipped: chexpert_14"):
        load_findings(tmp_path / "mine.yaml")


@pytest.mark.parametrize(("text", "kind"), [("- mass\n", "list"), ("", "NoneType")])
def test_a_file_that_is_no_table_of_keys_is_refused(tmp_path, text, kind):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(TypeError, match=f"must be a table of keys, got {kind} in mine.yaml"):
        load_findings(tmp_path / "mine.yaml")


def test_an_unknown_field_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{BASE}parents: []\n")
    with pytest.raises(ValueError, match="parents"):
        load_findings(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: x\nfindings:\n- {key: Big mass, name: N, definition: d, prompts: [p]}\n",
            r"findings\.0\.key must fit its field, got 'Big mass' in mine\.yaml: String should match pattern "
            r"'\^\[a-z\].*'\. Copy the layout of a shipped findings set\.",
        ),
        (
            "name: x\nfindings:\n- {key: a, name: N, prompts: []}\n",
            r"findings\.0\.definition must fit its field, got nothing in mine\.yaml: Field required\. .* "
            r"There are 1 more such problems\.",
        ),
        (
            f"{BASE}keys: [cyst]\n",
            r"parent must be a key of the same set, got 'mass' for 'cyst'\. .* Correct mine\.yaml\.",
        ),
        (
            "name: x\nbase: ct_rate_18\noverrides: {emphysema: {name: ''}}\n",
            r"name must fit its field, got '' in mine\.yaml: String should have at least 1 character\. .*",
        ),
        (
            "name: [\n",
            r"a findings set must be YAML, got mine\.yaml with an error at line 2: .*\. Close every br.*",
        ),
        ("name: \0\n", r"a findings set must be YAML, got mine\.yaml with an error: ReaderError\. .*"),
    ],
)
def test_an_error_in_a_file_is_one_line_with_its_name(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"^{message}$") as caught:
        load_findings(tmp_path / "mine.yaml")
    assert "http" not in str(caught.value)


def test_an_error_in_the_base_names_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("name: base\nfindings: []\n")
    (tmp_path / "mine.yaml").write_text("name: mine\nbase: base.yaml\n")
    with pytest.raises(ValueError, match=r"^findings must fit its field, got \(\) in base\.yaml: "):
        load_findings(tmp_path / "mine.yaml")
