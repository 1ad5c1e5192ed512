import pytest

from radtower.data.model_names import without_machine_path


@pytest.mark.parametrize(
    ("model_id", "shown"),
    [
        ("owner/name", "owner/name"),
        ("accounts/fireworks/models/x", "accounts/fireworks/models/x"),
        ("/home/me/runs/labeler", "labeler"),
        ("./runs/labeler", "labeler"),
        ("~/labeler", "labeler"),
        ("C:\\Users\\me\\labeler", "labeler"),
    ],
)
def test_shows_no_path_of_a_machine(model_id, shown):
    assert without_machine_path(model_id) == shown
