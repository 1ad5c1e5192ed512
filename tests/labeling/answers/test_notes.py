from radtower.labeling.answers.notes import merge_notes


def test_counts_are_added_up_and_other_sentences_come_once():
    slow = "It was slow."
    notes = ["3 reports have windows.", slow, "2 sentences are cut.", slow, "40 reports have windows."]
    assert merge_notes(notes) == ("43 reports have windows.", slow, "2 sentences are cut.")
    assert merge_notes(["12"]) == ("12",)
    assert merge_notes([]) == ()
