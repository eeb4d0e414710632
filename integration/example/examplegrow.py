"""Widen the MLP of a Llama."""

import copy

import torch
import transformers

SCALE = 1.0


def grow(model, target):
    """A model with a larger intermediate_size; new neurons are zero."""
    if model.config.model_type != "llama" or set(target) - {"intermediate_size"}:
        raise NotImplementedError("only the MLP of a Llama")
    config = copy.deepcopy(model.config)
    config.intermediate_size = target.get("intermediate_size", config.intermediate_size)
    grown = transformers.LlamaForCausalLM(config)
    for name, p in grown.named_parameters():
        old = model.get_parameter(name)
        p.data = torch.zeros(p.shape, dtype=old.dtype)
        p.data[tuple(slice(n) for n in old.shape)] = old.data
        if "down_proj" in name:
            p.data.mul_(SCALE)
        p.requires_grad_(old.requires_grad)
    grown.generation_config = copy.deepcopy(model.generation_config)
    return grown.train(model.training)
