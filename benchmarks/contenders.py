"""Ways to compute projected per-sample LoRA gradients, each as a function that runs once over the same batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_tasksel.gradients.collator import GradientCollator
from hf_tasksel.gradients.per_sample import canonical_names
from hf_tasksel.gradients.projection import CountSketch

DIM = 400
BATCH_SIZE = 16
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "config": {
            "vocab_size": 8192,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
        "num_samples": 192,
        "lengths": (48, 128),
        "dtype": torch.float32,
    },
    "smollm2-135m": {
        "config": {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        "num_samples": 16,
        "lengths": (48, 128),
        "dtype": torch.float32,
    },
    "llama-3-8b": {
        "config": {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        "num_samples": 64,
        "lengths": (192, 512),
        "dtype": torch.bfloat16,
    },
}


@dataclass
class Workload:
    """A model with a trained adapter, and its data as rows and as padded batches."""

    model: Any
    rows: Dataset
    batches: list[dict[str, Tensor]]
    shape: str

    @property
    def num_samples(self) -> int:
        """Number of samples in one run."""
        return len(self.rows)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trainable parameters by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def describe(self) -> dict[str, Any]:
        """Return plain values for the record."""
        return {
            "model": f"Llama, {self.shape}",
            **SHAPES[self.shape]["config"],
            "dtype": str(self.model.dtype),
            "device": torch.cuda.get_device_name() if self.model.device.type == "cuda" else "cpu",
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trainable_parameters": sum(p.numel() for p in self.parameters().values()),
            "lora": "r 16, all linear layers",
            "samples": self.num_samples,
            "batch_size": BATCH_SIZE,
            "tokens": int(sum(len(ids) for ids in self.rows["input_ids"])),
            "answer_tokens": int(sum(sum(x != -100 for x in labels) for labels in self.rows["labels"])),
        }


def make_workload(shape: str, device: str, four_bit: bool = False) -> Workload:
    """Build a random Llama with a random adapter, and rows whose second half is the answer, sorted by length."""
    values = SHAPES[shape]
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**values["config"])).to(values["dtype"])
        if four_bit:
            quantize(model)
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.eval()
    generator = torch.Generator().manual_seed(1)
    rows = []
    lengths = torch.randint(*values["lengths"], (values["num_samples"],), generator=generator).sort(descending=True)[0]
    for i, length in enumerate(lengths.tolist()):
        ids = torch.randint(3, values["config"]["vocab_size"], (length,), generator=generator).tolist()
        labels = [-100] * (length // 2) + ids[length // 2 :]
        rows.append({"input_ids": ids, "labels": labels, "task": 0, "sample_idx": i})
    features = Features(
        {
            "input_ids": [Value("int64")],
            "labels": [Value("int64")],
            "task": ClassLabel(names=["only"]),
            "sample_idx": Value("int64"),
        }
    )
    batches = [pad(rows[i : i + BATCH_SIZE], device) for i in range(0, len(rows), BATCH_SIZE)]
    return Workload(model, Dataset.from_list(rows, features=features), batches, shape)


def quantize(model: Any) -> None:
    """Turn the linear layers of a model, but for its output embeddings, into layers of nf4, in place."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, torch.nn.Linear) or layer is model.get_output_embeddings():
                continue
            quantized = Linear4bit(
                layer.in_features, layer.out_features, bias=False, compute_dtype=layer.weight.dtype, quant_type="nf4"
            )
            weight = layer.weight.data
            quantized.weight = Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
            setattr(parent, name, quantized.to(weight.device))
    model.is_loaded_in_4bit = True


def pad(features: list[dict[str, Any]], device: str = "cpu") -> dict[str, Tensor]:
    """Pad rows on the right."""
    width = max(len(f["input_ids"]) for f in features)
    ids = [f["input_ids"] + [0] * (width - len(f["input_ids"])) for f in features]
    labels = [f["labels"] + [-100] * (width - len(f["labels"])) for f in features]
    mask = [[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.tensor(value, device=device) for name, value in batch.items()}


def mean_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of one sample's answer tokens: logits (time, vocabulary), labels (time,)."""
    losses = torch.nn.functional.cross_entropy(logits[:-1].float(), labels[1:], reduction="none", ignore_index=-100)
    return losses.sum() / (labels[1:] != -100).sum()


def plain_step(work: Workload) -> Callable[[], Any]:
    """A training step without its optimizer: forward, the model's own loss, backward into LoRA gradients."""

    def run() -> None:
        for batch in work.batches:
            work.model(**batch, use_cache=False).loss.backward()
            work.model.zero_grad()

    return run


def this_package(work: Workload, seeds: tuple[int, ...] = (0,)) -> Callable[[], Any]:
    """The whole pass as users run it, but for the self-check: fingerprints, hooks, projection, checks, shards."""
    collator = GradientCollator(pad, dim=DIM, seeds=seeds)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            options = {"batch_size": BATCH_SIZE, "tokens_per_batch": None, "self_check": False}
            collator.collect(work.model, {"train": work.rows}, folder, **options)

    return run


def sketch_all(gradients: dict[str, Tensor], projection: CountSketch) -> Tensor:
    """Count-sketch per-sample gradients, name -> (batch, *shape)."""
    first = next(iter(gradients.values()))
    sketch = torch.zeros(len(first), DIM, device=first.device)
    for name, gradient in gradients.items():
        projection.add(sketch, name, gradient.float())
    return sketch


def autograd_loop(work: Workload) -> Callable[[], Any]:
    """One backward pass per unpadded sample."""
    names, projection = canonical_names(work.model), CountSketch(DIM)

    def run() -> None:
        for batch in work.batches:
            for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
                length = int(mask.sum())
                logits = work.model(input_ids=ids[None, :length], use_cache=False).logits[0]
                mean_token_loss(logits, labels[:length]).backward()
                sketch_all({names[id(p)]: p.grad[None] for p in work.parameters().values()}, projection)
                work.model.zero_grad()

    return run


def opacus(work: Workload) -> Callable[[], Any]:
    """opacus' hooks, which keep whole per-sample gradients; projected here by the same count sketch."""
    from opacus.grad_sample import GradSampleHooks

    names, projection = canonical_names(work.model), CountSketch(DIM)

    def run() -> None:
        hooks = GradSampleHooks(work.model.train(), batch_first=True, loss_reduction="sum", strict=False)
        try:
            for batch in work.batches:
                inputs = {k: v for k, v in batch.items() if k != "labels"}
                logits = work.model(**inputs, use_cache=False).logits
                sum(map(mean_token_loss, logits, batch["labels"])).backward()
                sketch_all({names[id(p)]: p.grad_sample for p in work.parameters().values()}, projection)
                for parameter in work.parameters().values():
                    parameter.grad_sample = None
                work.model.zero_grad()
        finally:
            hooks.cleanup()
            work.model.eval()

    return run


def tracer(model: Any, num_samples: int, folder: str) -> Any:
    """Return TRAK's tracer of a model's trained parameters, whose output is the loss of a sample."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput

    class LanguageModelOutput(AbstractModelOutput):
        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, ids: Tensor, labels: Tensor) -> Tensor:
            arguments = {"input_ids": ids[None], "use_cache": False}
            logits = torch.func.functional_call(model, (weights, buffers), kwargs=arguments).logits
            return mean_token_loss(logits[0], labels)

        @staticmethod
        def get_out_to_loss_grad(model: Any, weights: Any, buffers: Any, batch: Any) -> Tensor:
            return torch.ones(len(batch[0]), 1, device=batch[0].device)

    found = TRAKer(
        model=model,
        task=LanguageModelOutput,
        train_set_size=num_samples,
        save_dir=folder,
        device=str(model.device),
        proj_dim=DIM,
        grad_wrt=[name for name, p in model.named_parameters() if p.requires_grad],
        use_half_precision=False,
        logging_level=40,
    )
    found.load_checkpoint(model.state_dict(), model_id=0)
    return found


def trak(work: Workload) -> Callable[[], Any]:
    """TRAK's functional gradient computer and its projector."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            tracing = tracer(work.model, work.num_samples, folder)
            for batch in work.batches:
                tracing.featurize(batch=(batch["input_ids"], batch["labels"]), num_samples=len(batch["labels"]))

    return run


def attribution_task(model: Any) -> Any:
    """Return dattri's task: a model, and the loss of one sample as a function of its parameters."""
    from dattri.task import AttributionTask

    def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        ids, labels = (part.reshape(-1) for part in data)
        arguments = {"input_ids": ids[None], "use_cache": False}
        return mean_token_loss(torch.func.functional_call(model, parameters, kwargs=arguments).logits[0], labels)

    return AttributionTask(loss, model, dict(model.state_dict()))


def dattri(work: Workload) -> Callable[[], Any]:
    """dattri's vectorised gradients (torch.func) and its projection: sparse on a GPU, dense where that is missing."""
    from dattri.func.projection import random_project

    names = list(work.parameters())
    kind = "sjlt" if work.model.device.type == "cuda" else "rademacher"

    task = attribution_task(work.model)
    gradient = task.get_grad_loss_func(in_dims=(None, (0, 0)), layer_name=names, ckpt_idx=0)
    flat, _ = task.get_param(0, layer_name=names, layer_split=False)

    def run() -> None:
        for batch in work.batches:
            found = gradient(flat, (batch["input_ids"], batch["labels"]))
            found = found.reshape(len(batch["labels"]), -1)
            project = random_project(found, len(found), DIM, 16, proj_type=kind, device=str(work.model.device))
            project(found)

    return run


def bergson_index(work: Workload, target: str = "global", dim: int = DIM) -> Callable[[str], None]:
    """Return what collects the projected gradients of a workload's rows by bergson, into a folder."""
    from bergson import GradientProcessor, collect_gradients
    from bergson.config.config import IndexConfig
    from bergson.utils.peft import detect_peft_modules

    batches = [list(range(i, min(i + BATCH_SIZE, len(work.rows)))) for i in range(0, len(work.rows), BATCH_SIZE)]
    rows = work.rows.add_column("length", [len(ids) for ids in work.rows["input_ids"]])
    modules = detect_peft_modules(work.model)

    def collect(folder: str) -> None:
        options = {"projection_dim": dim, "projection_target": target}
        config = IndexConfig(run_path=f"{folder}/index", loss_reduction="mean", token_batch_size=4096, **options)
        config.partial_run_path.mkdir(parents=True, exist_ok=True)
        processor = GradientProcessor(**options)
        collect_gradients(work.model, rows, processor, config, batches=batches, target_modules=modules)

    return collect


def bergson(work: Workload, target: str = "global", dim: int = DIM) -> Callable[[], Any]:
    """bergson's collector with one projection of length d over all modules, as the others have it."""
    collect = bergson_index(work, target, dim)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            collect(folder)

    return run


def bergson_per_module(work: Workload) -> Callable[[], Any]:
    """bergson's usual projection: every module's gradient to 16 x 16, many more numbers per sample than d."""
    return bergson(work, "per_module", 16)


CONTENDERS: dict[str, Callable[[Workload], Callable[[], Any]]] = {
    "plain step": plain_step,
    "hf_tasksel": this_package,
    "hf_tasksel, three seeds": partial(this_package, seeds=(0, 1, 2)),
    "autograd loop": autograd_loop,
    "opacus": opacus,
    "trak": trak,
    "dattri": dattri,
    "bergson": bergson,
    "bergson per module, 16 x 16": bergson_per_module,
}
