import pandas as pd

from radtower.data.pair_keys import keys_of_study, pair_keys


def test_one_report_and_one_study_have_one_key():
    studies = pd.DataFrame(
        {
            "report": ["No  nodule.", "No nodule.", "Nodule.", "Effusion."],
            "study_id": ["a", "b", "c", "c"],
        }
    )
    keys = pair_keys(studies)
    assert keys.shape == (4, 2)
    assert (keys > 0).all()
    reports, ids = keys.T.tolist()
    assert reports[0] == reports[1]
    assert len(set(reports)) == 3
    assert ids[2] == ids[3]
    assert len(set(ids)) == 3


def test_no_studies_have_no_keys():
    assert pair_keys(pd.DataFrame({"report": [], "study_id": []})).shape == (0, 2)


def test_a_study_without_an_id_has_the_key_of_its_report_alone():
    (keys,) = pair_keys(pd.DataFrame({"report": ["No nodule."], "study_id": ["a"]})).tolist()
    assert keys_of_study("No nodule.", "a") == tuple(keys)
    assert keys_of_study("No nodule.", None) == (keys[0], 0)
