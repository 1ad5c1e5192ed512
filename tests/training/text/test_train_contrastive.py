import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, EvalPrediction

from radtower.data.reports.pairs import read_pairs, write_pairs
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.modeling.losses import cosine_similarities
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.runs import TextContrastiveRun
from radtower.training.text.contrastive_trainer import ContrastiveLoss, mean_statistics
from radtower.training.text.train_contrastive import set_attention_dropout, train_contrastive

SAVING = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def run(pairs_file, tiny_llm_folder):
    return TextContrastiveRun(pairs=(str(pairs_file),), llm=str(tiny_llm_folder), max_length=48)


def _log(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def test_saves_an_encoder_whose_frozen_layers_are_those_of_the_llm(run, make_arguments):
    folder = train_contrastive(replace(run, num_frozen_layers=1), make_arguments())
    encoder = LLMBiEncoder.from_pretrained(folder)
    assert (encoder.config.pooling, encoder.config.max_length, encoder.config.bidirectional) == (
        "mean",
        48,
        True,
    )
    llm = AutoModelForCausalLM.from_pretrained(run.llm).model.state_dict()
    changed = {
        name for name, value in encoder.model.state_dict().items() if not torch.equal(value, llm[name])
    }
    assert changed == {name for name in llm if not name.startswith(("embed_tokens.", "layers.0."))}
    ids = [AutoTokenizer.from_pretrained(path)("no nodule")["input_ids"] for path in (folder, run.llm)]
    assert ids[0] == ids[1]
    assert {path.name for path in folder.iterdir()} >= {"run.yaml", "training_log.jsonl", "model.safetensors"}
    assert run.llm not in (folder / "config.json").read_text()


def test_learns_which_texts_belong_together(run, make_arguments, pairs_file):
    arguments = make_arguments(max_steps=60, per_device_train_batch_size=6, logging_steps=60)
    folder = train_contrastive(run, arguments)
    table = read_pairs(pairs_file, "train")
    for name, expected in ((run.llm, 0), (folder, 12)):
        encoder = (
            LLMBiEncoder.from_llm(name, pooling="mean")
            if name == run.llm
            else LLMBiEncoder.from_pretrained(name)
        )
        queries = encoder.encode(list(table["query"]))
        answers = encoder.encode(list(table["positive"]))
        wrong = torch.stack([encoder.encode(list(names)) for names in table["negatives"]], dim=1)
        right = cosine_similarities(queries, answers).diagonal()
        is_right = [right > cosine_similarities(queries, column).diagonal() for column in wrong]
        assert torch.stack(is_right).all(dim=0).sum().item() >= expected
    last = _log(folder)[0]
    assert last["step"] == 60
    assert last["positive_similarity"] > last["negative_similarity"] + 0.1
    assert last["accuracy"] > 0.5


def test_the_log_tells_the_loss_of_the_first_batch_by_hand(run, make_arguments, pairs_file):
    flat = replace(run, num_negatives=0, is_symmetric=False, should_mask_labels=False, scale=5.0)
    settings = {"max_steps": 1, "per_device_train_batch_size": 6, "learning_rate": 0.0}
    entry = _log(train_contrastive(flat, make_arguments(**settings)))[0]
    encoder = LLMBiEncoder.from_llm(run.llm, pooling="mean", max_length=48)
    losses = []
    for _, rows in read_pairs(pairs_file, "train").groupby("source"):
        similarity = cosine_similarities(
            encoder.encode(list(rows["query"])), encoder.encode(list(rows["positive"]))
        )
        losses.append(-(5 * similarity).log_softmax(dim=1).diagonal().mean().item())
    assert min(abs(entry["loss"] - loss) for loss in losses) < 1e-4
    assert 0 <= entry["accuracy"] <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_negatives": 0},
        {"num_negatives": 2},
        {"scale": 10.0},
        {"should_mask_labels": False},
        {"is_symmetric": False},
        {"matryoshka_dims": (32, 8)},
        {"attention_dropout": 0.5},
        {"bidirectional": False},
        {"pooling": "last_token"},
        {"num_hidden_layers": 1},
        {"max_length": 6},
        {"training_length": 6},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_setting_changes_what_is_trained(run, make_arguments, changes):
    settings = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 6}
    plain = _log(train_contrastive(run, make_arguments("plain", **settings)))[0]["loss"]
    other = _log(train_contrastive(replace(run, **changes), make_arguments("other", **settings)))[0]["loss"]
    assert abs(plain - other) > 1e-4


def test_the_encoder_reads_more_than_the_training_did(run, make_arguments):
    folder = train_contrastive(replace(run, training_length=6), make_arguments())
    assert LLMBiEncoder.from_pretrained(folder).config.max_length == 48


def test_several_tables_are_trained_on_like_one(run, make_arguments, tmp_path):
    table = read_pairs(run.pairs[0])
    places = [str(tmp_path / f"{source}.parquet") for source in ("chest", "abdomen")]
    for source, path in zip(("chest", "abdomen"), places, strict=True):
        write_pairs(table[table["source"] == source], path)
    losses = [
        [
            line.get("loss")
            for line in _log(train_contrastive(replace(run, pairs=pairs), make_arguments(name)))
        ]
        for name, pairs in (("one", run.pairs[0]), ("two", tuple(places)))
    ]
    assert losses[0] == losses[1]


def test_the_size_of_the_chunks_changes_nothing_else(run, make_arguments):
    settings = {"max_steps": 1, "learning_rate": 0.0}
    losses = [
        _log(train_contrastive(replace(run, chunk_size=size), make_arguments(f"m{size}", **settings)))[0][
            "loss"
        ]
        for size in (1, 2, 16)
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"attention_dropout": 0.3},
        {"num_frozen_layers": 1, "should_cache_frozen": True},
        {"lora_rank": 4, "lora_dropout": 0.1},
    ],
    ids=["dropout", "cached", "lora"],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(run, make_arguments, changes):
    run = replace(run, **changes)
    whole = train_contrastive(run, make_arguments("whole", **SAVING))
    train_contrastive(run, make_arguments("killed", **SAVING))
    killed = whole.parent / "killed"
    (killed / "model.safetensors").unlink()
    for number in (4, 5):
        shutil.rmtree(killed / f"checkpoint-{number}")
    (killed / "checkpoint-3" / "trainer_state.json").unlink()  # killed while it was written
    again = train_contrastive(run, make_arguments("killed", **SAVING, resume_from_checkpoint=True))
    left, right = (LLMBiEncoder.from_pretrained(folder).state_dict() for folder in (whole, again))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    at_two = LLMBiEncoder.from_pretrained(killed / "checkpoint-2").state_dict()
    assert any(not torch.equal(left[name], at_two[name]) for name in left)


def test_stored_states_of_the_frozen_layers_train_the_same_model(run, make_arguments):
    frozen = replace(run, num_frozen_layers=1)
    plain, stored = (
        LLMBiEncoder.from_pretrained(
            train_contrastive(replace(frozen, should_cache_frozen=cached), make_arguments(f"cached_{cached}"))
        ).state_dict()
        for cached in (False, True)
    )
    assert plain.keys() == stored.keys()
    for name, value in plain.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-4)


def test_low_rank_training_saves_a_plain_encoder_that_it_changed(run, make_arguments):
    low = replace(run, lora_rank=4, num_frozen_layers=1)
    folder = train_contrastive(low, make_arguments())
    found = LLMBiEncoder.from_pretrained(folder).state_dict()
    start = LLMBiEncoder.from_llm(run.llm, pooling="mean").state_dict()
    assert found.keys() == start.keys()
    changed = {name for name, value in found.items() if not torch.equal(value, start[name])}
    assert len(changed) == 7
    assert all(name.startswith("model.layers.1.") and name.endswith("_proj.weight") for name in changed)


def test_resuming_refuses_another_loss(run, make_arguments):
    train_contrastive(run, make_arguments(**SAVING))
    with pytest.raises(ValueError, match=r"got scale 20.0 there and 30.0 now"):
        train_contrastive(replace(run, scale=30.0), make_arguments(**SAVING, resume_from_checkpoint=True))


def test_simcse_needs_dropout_that_is_on(run, make_arguments, tmp_path):
    table = read_pairs(run.pairs[0])
    write_pairs(table.assign(positive=table["query"]), tmp_path / "same.parquet")
    same = replace(run, pairs=(str(tmp_path / "same.parquet"),), num_negatives=0)
    with pytest.raises(ValueError, match=r"where a text is its own positive, got 0\.0\."):
        train_contrastive(same, make_arguments())
    settings = {"max_steps": 1, "learning_rate": 0.0}
    entry = _log(train_contrastive(replace(same, attention_dropout=0.3), make_arguments("on", **settings)))[0]
    assert entry["positive_similarity"] < 0.9999  # two dropouts, two vectors
    assert entry["positive_similarity"] > entry["negative_similarity"]


def test_evaluation_tells_loss_and_accuracy_of_the_validation_split(run, make_arguments, tmp_path):
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3}
    entries = _log(train_contrastive(run, make_arguments(**settings, do_eval=True)))
    found = next(entry for entry in entries if "eval_loss" in entry)
    assert found["eval_loss"] > 0
    assert 0 <= found["eval_accuracy"] <= 1
    # By hand: the validation rows of each source are one batch.
    encoder = LLMBiEncoder.from_pretrained(tmp_path / "model")
    right = []
    for _, rows in read_pairs(run.pairs[0], "validation").groupby("source", sort=False):
        queries, answers = (encoder.encode(list(rows[name])) for name in ("query", "positive"))
        right.append(cosine_similarities(queries, answers).diagonal())
    assert found["eval_positive_similarity"] == pytest.approx(torch.cat(right).mean().item(), abs=1e-5)


def test_evaluation_goes_on_where_a_last_batch_is_one_text_only(run, make_arguments, tmp_path):
    table = read_pairs(run.pairs[0])
    last = table[table["split"] == "validation"].index[-1]
    rows = {name: [cell] for name, cell in table.loc[last].items()}
    text = table["query"][last]
    rows |= {"source": ["own/source"], "positive": [text], "negatives": [[f"{text} effusion"]]}
    lone = pd.concat([table, pd.DataFrame(rows | {"negative_kinds": [["finding"]]})], ignore_index=True)
    write_pairs(lone, tmp_path / "lone.parquet")
    settings = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3}
    lone_run = replace(run, pairs=(str(tmp_path / "lone.parquet"),), training_length=8)
    entries = _log(train_contrastive(lone_run, make_arguments(**settings, do_eval=True)))
    assert sum("eval_loss" in entry for entry in entries) == 1


def test_a_model_without_spread_stops_the_run(run, make_arguments, tmp_path):
    llm = AutoModelForCausalLM.from_pretrained(run.llm)
    with torch.no_grad():
        llm.model.norm.weight.zero_()
        llm.model.norm.weight[0] = 1.0  # one direction is left
        llm.model.embed_tokens.weight[:, 0] = 5.0
    llm.save_pretrained(tmp_path / "flat")
    AutoTokenizer.from_pretrained(run.llm).save_pretrained(tmp_path / "flat")
    with pytest.raises(FloatingPointError, match=r"got cosines within .* of each other at step 0"):
        train_contrastive(replace(run, llm=str(tmp_path / "flat")), make_arguments())


def test_attention_dropout_is_on_in_training_and_off_afterwards(tiny_llm_folder):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")
    inputs = encoder.tokenize("There is a small nodule.")
    set_attention_dropout(encoder, 0.5)
    encoder.train()
    assert not torch.equal(encoder(**inputs).pooler_output, encoder(**inputs).pooler_output)
    encoder.eval()
    assert torch.equal(encoder(**inputs).pooler_output, encoder(**inputs).pooler_output)
    assert encoder.config.text_config.attention_dropout == 0.0


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_attention_dropout_must_be_a_probability(tiny_llm_folder, probability):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")
    with pytest.raises(ValueError, match=rf"got {probability} for 2 layers"):
        set_attention_dropout(encoder, probability)


@pytest.mark.parametrize("changes", [{"scale": 0.0}, {"chunk_size": 0}], ids=str)
def test_refuses_a_loss_without_scale_and_chunks_without_texts(run, changes):
    value = next(iter(changes.values()))
    with pytest.raises(ValueError, match=rf"got .*{value}"):
        replace(run, **changes)


def test_goes_on_with_an_encoder_of_masked_training(run, make_arguments, tiny_llm_folder, tmp_path):
    masked = LLMBiEncoderForMaskedNTP.from_llm(tiny_llm_folder)
    with torch.no_grad():
        masked.encoder.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    masked.save_pretrained(tmp_path / "masked")
    masked.encoder.tokenizer.save_pretrained(tmp_path / "masked")
    start = {name: value.clone() for name, value in masked.encoder.state_dict().items()}
    run = replace(run, llm=str(tmp_path / "masked"))
    for pooling in ("mean", "latent_attention"):
        arguments = make_arguments(pooling, max_steps=1, learning_rate=0.0)
        encoder = LLMBiEncoder.from_pretrained(train_contrastive(replace(run, pooling=pooling), arguments))
        assert (encoder.config.pooling, encoder.config.max_length) == (pooling, 48)
        assert all(
            torch.equal(value, start[name]) for name, value in encoder.state_dict().items() if name in start
        )
        assert (encoder.latent_attn is None) == (pooling == "mean")


def test_refuses_an_encoder_that_would_be_cut_or_lose_its_head(
    run, make_arguments, tiny_llm_folder, tmp_path
):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, latent_variant="v0", max_length=48)
    encoder.save_pretrained(tmp_path / "encoder")
    run = replace(run, llm=str(tmp_path / "encoder"), pooling="latent_attention")
    with pytest.raises(ValueError, match="num_hidden_layers must be left out where llm is an encoder, got 1"):
        train_contrastive(replace(run, num_hidden_layers=1), make_arguments())
    path = tmp_path / "encoder" / "model.safetensors"
    weights = load_file(path)
    save_file({name: weights[name] for name in weights if "latent_attn" not in name}, path, {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"every weight of the encoder, got \d+ missing, such as latent_attn\."
    ):
        train_contrastive(run, make_arguments())


def test_an_encoder_goes_on_with_its_own_head_direction_and_length(
    run, make_arguments, tiny_llm_folder, tmp_path
):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, latent_variant="v0", max_length=48)
    encoder.save_pretrained(tmp_path / "encoder")
    run = replace(run, llm=str(tmp_path / "encoder"), pooling="latent_attention")
    folder = train_contrastive(run, make_arguments(max_steps=1, learning_rate=0.0))
    again = LLMBiEncoder.from_pretrained(folder)
    assert again.config.latent_variant == "v0"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())
    for changes, message in (
        ({"pooling": "mean"}, "pooling 'latent_attention' there and 'mean' now"),
        ({"bidirectional": False}, "bidirectional True there and False now"),
        ({"max_length": 32}, "max_length 48 there and 32 now"),
    ):
        with pytest.raises(ValueError, match=f"must go on as it was trained, got {message}"):
            train_contrastive(replace(run, **changes), make_arguments())


def test_a_head_of_latent_attention_may_follow_the_mean_which_it_starts_as(
    run, make_arguments, tiny_llm_folder, tmp_path
):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", max_length=48)
    encoder.save_pretrained(tmp_path / "encoder")
    run = replace(run, llm=str(tmp_path / "encoder"), pooling="latent_attention")
    folder = train_contrastive(run, make_arguments(max_steps=1, learning_rate=0.0))
    again = LLMBiEncoder.from_pretrained(folder)
    assert again.config.latent_variant == "prenorm"
    torch.testing.assert_close(again.encode("No effusion."), encoder.eval().encode("No effusion."))


def test_resuming_refuses_other_pairs_at_the_same_place(run, make_arguments):
    train_contrastive(run, make_arguments(**SAVING))
    table = read_pairs(run.pairs[0])
    table.loc[table.index[0], "positive"] = "Another text."
    write_pairs(table, run.pairs[0])
    with pytest.raises(ValueError, match=r"got data '.*' there and '.*' now"):
        train_contrastive(run, make_arguments(**SAVING, resume_from_checkpoint=True))


def test_a_query_without_a_negative_counts_neither_as_right_nor_as_wrong():
    loss = ContrastiveLoss(scale=1.0)
    vectors = torch.eye(3)
    keys = torch.tensor([[1, 10], [1, 11], [2, 12]])
    statistics = loss(vectors, vectors, keys)[1]
    assert statistics[:, 2].tolist() == [1, 1, 1]  # the third is a negative of the first two
    alone = loss(vectors[:2], vectors[:2], keys[:2])[1]
    assert alone[:, 0].tolist() == [1, 1]
    assert alone[:, 1:].isnan().all()
    found = mean_statistics(EvalPrediction(torch.cat([statistics, alone]).numpy(), np.zeros(5)))
    assert found == {"positive_similarity": 1.0, "negative_similarity": 0.0, "accuracy": 1.0}
    assert mean_statistics(EvalPrediction(alone.numpy(), np.zeros(2))) == {"positive_similarity": 1.0}
