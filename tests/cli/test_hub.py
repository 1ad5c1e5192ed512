from huggingface_hub import ModelCard


def test_export_writes_a_folder_and_refuses_to_replace_another(radtower, dual_tower, tmp_path):
    done = radtower("export", dual_tower, "-o", tmp_path / "out", "--license", "apache-2.0")
    assert (done.code, done.out) == (0, f"Exported {tmp_path / 'out'}\n")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "apache-2.0"
    assert (tmp_path / "out" / "modeling_medclip.py").is_file()
    again = radtower("export", dual_tower, "-o", dual_tower)
    assert again.code == 2
    assert "which is neither" in again.err
    assert (dual_tower / "model.safetensors").is_file()
