"""The fine-tunings of Llama-3.2-3B of PEFT's method comparison, as workloads.

The model is built from its configuration, without weights. The longest batch's length was not
recorded: `LENGTH` is solved from the runs, so only differences between methods are tested.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

import rightbatch as rb

LENGTH = 712
VOCABULARY = 128256
_MODEL = {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}


def fine_tuning(run: dict[str, Any]) -> rb.Workload:
    """Return the step of a run: AdamW, clipping at 1.0, weights in bfloat16."""
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model: Any = LlamaForCausalLM(LlamaConfig(**_MODEL))
    finally:
        torch.set_default_dtype(before)
    if run["peft_config"] is not None:
        config = _config(peft, run["peft_config"])
        model = peft.get_peft_model(
            model, config, autocast_adapter_dtype=run["autocast_adapter_dtype"]
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    return rb.Workload(
        model=model,
        loss=lambda model, batch: cast(Tensor, model(**batch).loss),
        optimizer=torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1),
        data=Tokens(),
        size=lambda index: 1,
        clip_norm=run["clip_norm"],
        name=run["experiment"],
    )


class Tokens(Dataset[dict[str, Tensor]]):
    """Texts of up to `LENGTH` tokens, padded to it: without padding no mask would be made."""

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.zeros(LENGTH, dtype=torch.int64)
        mask = torch.ones(LENGTH, dtype=torch.int64)
        mask[LENGTH - index % 4 :] = 0
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens}


def _config(peft: Any, fields: dict[str, Any]) -> Any:
    """Return the configuration; fields that this version of PEFT does not know are left out."""
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(fields["peft_type"])]
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    given = {key: value for key, value in fields.items() if key in known and value is not None}
    for key in ("peft_type", "auto_mapping", "base_model_name_or_path", "peft_version"):
        given.pop(key, None)
    return kind(**{"task_type": "CAUSAL_LM"} | given)
