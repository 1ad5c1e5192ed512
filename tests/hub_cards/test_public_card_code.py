"""The usage code of the public LLM2Vec4CXR card runs unchanged on our exports, with transformers alone."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from radtower.hub_cards.export import export_model
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

# Written after the description of the card (huggingface.co/lukeingawesome/llm2vec4cxr): the same calls, in
# the same order, with the same keywords; the texts of its example, ours in the retrieval part.
CARD = """
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        MODEL, trust_remote_code=True, torch_dtype=torch.bfloat16
    ).to("cuda" if torch.cuda.is_available() else "cpu").eval()

    report = "Small left pleural effusion with basal atelectasis."
    embedding = model.encode_text(report)

    reports = [
        "No acute cardiopulmonary abnormality.",
        "Small bilateral pleural effusions.",
        "Large right hilar mass.",
    ]
    embeddings = model.encode_text(reports)

    separator = "!@#$%^&*()"
    instruction = "Determine the status of the pleural effusion."
    query = instruction + separator + "There is a small increase in the left-sided effusion."
    options = [
        "No pleural effusion",
        "Pleural effusion present",
        "Worsening pleural effusion",
        "Improving pleural effusion",
    ]
    scores = model.compute_similarities(query, options)
    best_match = options[torch.argmax(scores)]
    print(f"Best match: {best_match} (score: {torch.max(scores):.4f})")

    queries = ["Retrieve semantically similar sentences" + separator + text for text in reports[:2]]
    query_vectors = model.encode_with_separator(queries, separator=separator, max_length=512)
    document_vectors = model.encode_with_separator(reports, separator=separator, max_length=512)
    similarity = torch.nn.functional.cosine_similarity(query_vectors[:, None], document_vectors[None], dim=-1)
    nearest = torch.topk(similarity, k=2, dim=1).indices
"""
HIDE = """
    import sys
    MODEL = sys.argv[1]
    class Hiding:  # as if never installed: transformers asks what is there before it imports
        def __init__(self, finder):
            self.finder = finder
        def __getattr__(self, name):
            return getattr(self.finder, name)
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("radtower", "peft", "sentence_transformers", "datasets", "accelerate"):
                return None
            return self.finder.find_spec(name, path, target)
    sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
REPORT = """
    import importlib.util, json
    assert importlib.util.find_spec("radtower") is None and importlib.util.find_spec("peft") is None
    assert embedding.shape == (1, 32) and embeddings.shape == (3, 32) and scores.shape == (4,)
    results = embedding, embeddings, scores, query_vectors, document_vectors, similarity, nearest
    print("RESULT", json.dumps([tensor.tolist() for tensor in results]))
    print("KIND", type(model).__name__, type(model).__module__.split(".")[0], model.dtype, embedding.dtype)
"""


def _run_alone(folder, code, cache):
    """Run code in a fresh process that has transformers and nothing of ours."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    text = "".join(textwrap.dedent(part) for part in (HIDE, code, REPORT))
    done = subprocess.run(
        [sys.executable, "-c", text, str(folder)], capture_output=True, text=True, env=env, cwd=cache.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if line[:4] in ("RESU", "KIND"))


def _run_here(model, code):
    """Run the same code on a model of this process; gives the same tensors."""
    names: dict[str, object] = {"model": model}
    lines = textwrap.dedent(code).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("report ="))
    exec("\n".join(["import torch", *lines[start:]]), names)
    wanted = (
        "embedding",
        "embeddings",
        "scores",
        "query_vectors",
        "document_vectors",
        "similarity",
        "nearest",
    )
    return [names[name] for name in wanted]


@pytest.fixture
def public_folder(tiny_llm_folder, tiny_tokenizer, tmp_path):
    """A folder in the public layout: flat configuration, ``model.*`` and ``latent_attn.*``."""
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, latent_variant="v0", num_latents=6)
    folder = tmp_path / "public"
    tiny_tokenizer.save_pretrained(folder)
    save_file(encoder.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny_llm_folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {
        "architectures": ["LLM2Vec4CXRModel"],
        "auto_map": {"AutoModel": "modeling_llm2vec4cxr.LLM2Vec4CXRModel"},
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": config.pop("dtype"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_llm2vec4cxr.py").write_text("raise SystemExit('remote code was executed')\n")
    return folder, encoder


@pytest.mark.parametrize("keyword", ["torch_dtype", "dtype"])
def test_the_code_of_the_public_card_runs_on_an_export(public_folder, tmp_path, keyword):
    folder, source = public_folder
    imported = LLMBiEncoder.from_llm(folder)
    imported.save_pretrained(tmp_path / "ours")
    exported = export_model(tmp_path / "ours", tmp_path / "export")
    single = CARD.replace("torch_dtype=torch.bfloat16", f"{keyword}=torch.float32")
    assert single != CARD
    got = _run_alone(exported, single, tmp_path / "hf")
    assert got["KIND"] == "LLMBiEncoder transformers_modules torch.float32 torch.float32"
    for values, of_source, of_import in zip(
        json.loads(got["RESULT"]), _run_here(source, CARD), _run_here(imported, CARD), strict=True
    ):
        torch.testing.assert_close(of_import, of_source, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(torch.tensor(values), of_source, atol=1e-5, rtol=1e-5)


def test_the_code_of_the_public_card_runs_in_half_precision(public_folder, tmp_path):
    folder, source = public_folder
    LLMBiEncoder.from_llm(folder).save_pretrained(tmp_path / "ours")
    got = _run_alone(export_model(tmp_path / "ours", tmp_path / "export"), CARD, tmp_path / "hf")
    # Vectors are pooled in float32 whatever the weights are, as the public code does.
    assert got["KIND"] == "LLMBiEncoder transformers_modules torch.bfloat16 torch.float32"
    expected = _run_here(source.bfloat16(), CARD)
    for values, vectors in list(zip(json.loads(got["RESULT"]), expected, strict=True))[:5]:
        found = torch.tensor(values)
        assert F.cosine_similarity(found.flatten(), vectors.flatten(), dim=0) > 0.999
