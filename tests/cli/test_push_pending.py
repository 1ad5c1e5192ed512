"""``radtower push --pending``: what is refused; what is sent is in tests/hub_cards/pushes."""

import pytest


def test_pending_needs_the_output_of_a_run_and_nothing_else(radtower, tmp_path):
    done = radtower("push", "--pending", tmp_path)
    assert done.code == 2
    assert "output must be that of a training that pushes, got" in done.err


@pytest.mark.parametrize("more", [["tester/tower"], ["--public"], ["--tag", "v1"], ["--dry-run"]])
def test_pending_knows_where_it_goes(radtower, tmp_path, more):
    done = radtower("push", "--pending", tmp_path, *more)
    assert done.code == 2
    assert "--pending must come with the output of a run and --json only" in done.err


def test_a_model_must_go_somewhere(radtower, tmp_path):
    done = radtower("push", tmp_path)
    assert done.code == 2
    assert "repo_id must be OWNER/NAME, got none. Say where the model goes, or --pending." in done.err
