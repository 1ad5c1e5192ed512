import csv
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from radtower.labeling.findings import Finding, FindingsSet, Status, load_findings, match_finding


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


def test_no_name_or_synonym_of_the_shipped_list_is_shared():
    findings = load_findings("ct_rate_18")
    for finding in findings.findings:
        for word in (finding.key, finding.name, *finding.synonyms):
            assert match_finding(word, findings.keys, findings) == finding.key
