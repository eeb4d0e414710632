"""One rank of a model that is sharded by FSDP2 and grown, on CPUs.

`python -m torch.distributed.run --nproc-per-node N -m integration.sharded SOURCE
EXPECTED FOLDER MESH`: grows the checkpoint in SOURCE in shards over a mesh (4, or 2x2:
two copies, each in two shards), and exits with 0 if every shard is, bit for bit, that of
the checkpoint in EXPECTED. The weights come from a directory of
torch.distributed.checkpoint, FOLDER/old, and go into one, FOLDER/new.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from growproof.distributed import grow_into, grown_config
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM

TARGET = {"hidden_size": 24, "num_attention_heads": 2, "head_dim": 12, "vocab_size": 51}
FILL: Any = {"fill": "trainable"}


def sharded(model: Any, mesh: DeviceMesh) -> Any:
    """Each layer, and what is left, over all ranks."""
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def reloaded(model: Any, mesh: DeviceMesh, at: str) -> Any:
    """A model like this one, filled from a directory that this one was saved into."""
    save(model.state_dict(), checkpoint_id=at)
    with torch.device("meta"):
        twin = sharded(AutoModelForCausalLM.from_config(model.config), mesh)
    twin.to_empty(device="cpu")
    twin.model.rotary_emb = model.model.rotary_emb
    state = twin.state_dict()
    load(state, checkpoint_id=at)
    twin.load_state_dict(state)
    return twin


def main() -> None:
    """Grow, and compare every shard."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    source, grown, folder, shape = sys.argv[1:]
    sizes = tuple(int(n) for n in shape.split("x"))
    names = ("copies", "shards")[-len(sizes) :]
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    model = sharded(AutoModelForCausalLM.from_pretrained(source), mesh)
    model = reloaded(model, mesh, f"{folder}/old")
    with torch.device("meta"):
        bigger = AutoModelForCausalLM.from_config(
            grown_config(model.config, TARGET, **FILL)
        )
    bigger = grow_into(sharded(bigger, mesh), model, TARGET, **FILL)
    save(bigger.state_dict(), checkpoint_id=f"{folder}/new")
    expected = load_file(f"{grown}/model.safetensors")
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
