"""Adapters, prompts and last layers train in chunks and in several processes as in one process at once."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.clip.grad_cache import VECTORS_ONLY, cached_backward
from radtower.training.clip.pair_loss import PAIR_FIELDS, PairLoss

sys.path.insert(0, str(Path(__file__).parent))
from adapter_worker import CASES, gradients, make_model, train
from pair_worker import make_batch

WORKER = Path(__file__).parent / "adapter_worker.py"
TRAINED = {
    "bert_lora": {"vision_model": ".lora_", "text_model": ".lora_"},
    "llm_lora": {"vision_model": None, "text_model": ""},
    "soft_prompt": {"vision_model": ".lora_", "text_model": "soft_prompt.weight"},
    "last_n": {"vision_model": "", "text_model": "encoder.layer.1."},
    "llm_last_n": {"vision_model": "", "text_model": ""},
}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, torch.Tensor]]:
    return {case: gradients(0, 1, case, None) for case in CASES}


def _assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Against the largest gradient of the tensor: single numbers may cancel to nothing.
        difference = (found[name] - value).abs().max() / value.abs().max().clamp_min(1e-3)
        assert difference < 1e-5, name


@pytest.mark.parametrize("case", CASES)
def test_chunks_give_the_gradients_of_the_whole_batch(alone, case):
    for tower, mark in TRAINED[case].items():
        names = [name for name in alone[case] if name.startswith(f"{tower}.")]
        assert bool(names) == (mark is not None)
        assert all(mark in name for name in names)
        # The bias of keys adds the same to all scores of a query.
        assert all(alone[case][name].abs().max() > 1e-6 for name in names if "bias" not in name)
    _assert_close(gradients(0, 1, case, 4), alone[case])


@pytest.mark.slow
def test_processes_give_the_gradients_of_one(alone, run_workers, tmp_path):
    run_workers(WORKER, 2, tmp_path)
    for rank in range(2):
        found = load_file(tmp_path / f"rank_{rank}.safetensors")
        for case in CASES:
            for chunk_size in (None, 2):
                start = f"{case} {chunk_size} "
                own = {name.removeprefix(start): v for name, v in found.items() if name.startswith(start)}
                _assert_close(own, alone[case])


@pytest.mark.parametrize("case", ["bert_lora", "llm_lora"])
def test_dropout_on_the_updates_draws_the_same_numbers_both_times(case):
    batch = make_batch()
    relations = {name: batch.pop(name) for name in ("labels", "pair_keys")}
    found = []
    for is_cached in (False, True):
        model = make_model(case, dropout=0.4).train()
        pair_loss = PairLoss(objective=model.objective)
        torch.manual_seed(9)
        if is_cached:
            cached_backward(
                model,
                batch,
                4,
                lambda output, loss=pair_loss: loss(output, **relations),
                torch.Tensor.backward,
            )
        else:  # the same chunks, with all of their activations
            parts = [{n: v[at : at + 4] for n, v in batch.items()} for at in (0, 4, 8)]
            outputs = [model(**part, **VECTORS_ONLY) for part in parts]
            joined = {name: torch.cat([output[name] for output in outputs]) for name in PAIR_FIELDS}
            pair_loss(joined | {"logit_scale": outputs[0]["logit_scale"]}, **relations).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    kept, cached = found
    for name, value in kept.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-6)
    calm = gradients(0, 1, case, None)["text_projection.weight"]
    assert not torch.allclose(calm, kept["text_projection.weight"], rtol=0.02)


@pytest.mark.slow
def test_training_in_two_processes_and_chunks_gives_the_folder_of_one(run_workers, tmp_path):
    run_workers(WORKER, 2, tmp_path, 1)
    for case in CASES:
        start = make_model(case).state_dict()
        alone = MedCLIPModel.from_pretrained(train(tmp_path, case, 4, None)).state_dict()
        together, report = MedCLIPModel.from_pretrained(tmp_path / f"{case}_2", output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        name = "visual_projection.weight"
        assert (alone[name] - start[name]).abs().max() > 1e-3
        for name, value in together.state_dict().items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6, msg=f"{case} {name}")
