from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from radtower.evaluation.read_outs.linear_probe import linear_probe
from radtower.evaluation.read_outs.logistic import fit_probe, macro_auroc_on

KEYS = ("nodule", "effusion", "hernia")


@pytest.fixture
def splits(make_split):
    return make_split(1), make_split(2), make_split(3)


def test_scores_are_those_of_scikit_learn(splits):
    train, validation, test = splits
    train.labels[:7, 1] = -100
    read_out = linear_probe(train, validation, test, KEYS, strengths=[0.1])
    for column in range(3):
        known = train.labels[:, column] >= 0
        model = LogisticRegression(C=0.1)
        scaler = StandardScaler().fit(train.vectors)  # vectors of unknown labels standardize, too
        model.fit(scaler.transform(train.vectors[known]), train.labels[known, column])
        for split, scores in ((test, read_out.test), (validation, read_out.validation)):
            expected = model.predict_proba(scaler.transform(split.vectors))[:, 1]
            np.testing.assert_allclose(scores[:, column], expected, atol=1e-4)
    assert read_out.protocol == "linear probe, C = 0.1"
    assert read_out.note == "C = 0.1, fitted on 60 items"
    assert read_out.undefined == {}


def test_it_reads_what_is_in_the_vectors_and_nothing_else(splits):
    read_out = linear_probe(*splits, KEYS)
    values = [roc_auc_score(splits[2].labels[:, f], read_out.test[:, f]) for f in range(3)]
    assert min(values[:2]) > 0.8
    assert 0.25 < values[2] < 0.75
    assert read_out.protocol == "linear probe, C chosen on validation"


def test_the_strength_with_the_best_validation_is_taken(splits):
    train, validation, test = splits
    strengths = [1.0, 0.0001, 0.01]
    values = {}
    for strength in strengths:
        pipelines = [make_pipeline(StandardScaler(), LogisticRegression(C=strength)) for _ in KEYS]
        values[strength] = np.mean(
            [
                roc_auc_score(
                    validation.labels[:, f],
                    pipeline.fit(train.vectors, train.labels[:, f]).decision_function(validation.vectors),
                )
                for f, pipeline in enumerate(pipelines)
            ]
        )
    assert len(set(values.values())) == 3
    best = max(values, key=lambda strength: values[strength])
    assert f"C = {best:g}," in linear_probe(train, validation, test, KEYS, strengths).note
    probe = fit_probe((train.vectors, train.labels), (validation.vectors, validation.labels), strengths)
    assert macro_auroc_on(probe, (validation.vectors, validation.labels)) == pytest.approx(values[best])


def test_labels_of_the_test_split_are_not_looked_at(splits):
    train, validation, test = splits
    other = replace(test, labels=1 - test.labels)
    one, two = (linear_probe(train, validation, split, KEYS).test for split in (test, other))
    np.testing.assert_array_equal(one, two)


def test_a_finding_with_one_class_in_train_has_no_score(splits):
    train, validation, test = splits
    train.labels[:, 1] = 0
    read_out = linear_probe(train, validation, test, KEYS)
    assert np.isnan(read_out.test[:, 1]).all()
    assert np.isnan(read_out.validation[:, 1]).all()
    assert not np.isnan(read_out.test[:, [0, 2]]).any()
    assert read_out.undefined == {
        "effusion": "the train split has 0 of 60 known labels positive: nothing to tell apart"
    }


def test_one_strength_needs_no_validation(splits):
    train, validation, test = splits
    with_it, without = (linear_probe(train, v, test, KEYS, [0.1]) for v in (validation, None))
    np.testing.assert_array_equal(with_it.test, without.test)
    assert without.validation is None


def test_what_cannot_be_chosen_is_refused(splits):
    train, validation, test = splits
    with pytest.raises(ValueError, match="to choose one of 2 strengths, got no validation split"):
        linear_probe(train, None, test, KEYS, [0.1, 1.0])
    with pytest.raises(ValueError, match="to choose one of 5 strengths, got none"):
        linear_probe(train, replace(validation, labels=np.ones_like(validation.labels)), test, KEYS)
    with pytest.raises(ValueError, match=r"strengths must be positive, at least one, got \[\]"):
        linear_probe(train, validation, test, KEYS, [])
    with pytest.raises(ValueError, match=r"strengths must be positive, at least one, got \[0.1, 0\]"):
        linear_probe(train, validation, test, KEYS, [0.1, 0])
    with pytest.raises(ValueError, match="train must have a finding with both classes, got none of 3"):
        linear_probe(replace(train, labels=np.ones_like(train.labels)), validation, test, KEYS)
    with pytest.raises(ValueError, match="one width and 2 findings"):
        linear_probe(train, validation, test, KEYS[:2])
