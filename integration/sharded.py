"""One rank of a model that is sharded by FSDP2 and grown, on CPUs.

`python -m torch.distributed.run --nproc-per-node N -m integration.sharded SOURCE
EXPECTED`: grows the checkpoint in SOURCE in shards, and exits with 0 if every
shard is, bit for bit, that of the checkpoint in EXPECTED.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from growproof.distributed import grow_into, grown_config
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM

TARGET = {"hidden_size": 24, "num_attention_heads": 2, "head_dim": 12, "vocab_size": 51}
FILL: Any = {"fill": "trainable"}


def sharded(model: Any) -> Any:
    """Each layer, and what is left, over all ranks."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def main() -> None:
    """Grow, and compare every shard."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = sharded(AutoModelForCausalLM.from_pretrained(sys.argv[1]))
    with torch.device("meta"):
        bigger = AutoModelForCausalLM.from_config(
            grown_config(model.config, TARGET, **FILL)
        )
    bigger = grow_into(sharded(bigger), model, TARGET, **FILL)
    expected = load_file(f"{sys.argv[2]}/model.safetensors")
    checked = 0
    for name, p in bigger.named_parameters():
        assert isinstance(p, DTensor), name
        own = distribute_tensor(expected[name], p.device_mesh, p.placements)
        assert p.to_local().numel() < expected[name].numel(), name
        assert torch.equal(p.to_local(), own.to_local()), name
        checked += 1
    assert checked == len(expected)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        same = torch.allclose(
            bigger(tokens).logits[..., :48], model(tokens).logits, rtol=1e-4, atol=1e-5
        )
    assert same, "another function"
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
