"""Models that are sharded over ranks grow as the whole model does, bit for bit."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from growproof.checkpoints import grow_checkpoint
from growproof.decoder import GrowthError
from growproof.distributed import grow_into, grown_config
from growproof.growth import Policies
from growproof.models import grow, model_class
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from .sharded import FILL, TARGET
from .small import llama, saved

CHECKOUT = Path(__file__).parents[1]  # a script in integration/ would hide `kernels`


@pytest.mark.parametrize("mesh", ["4", "2x2"])
def test_fsdp_shards_are_those_of_the_whole(mesh: str, tmp_path: Path) -> None:
    """FSDP2 over gloo ranks: in sharded, out sharded, the bytes of one process.

    From a directory of torch.distributed.checkpoint into another, which one process reads.
    """
    source = saved(llama(), tmp_path / "source")
    grow_checkpoint(source, tmp_path / "grown", TARGET, policies=Policies(**FILL))
    command = [
        sys.executable, "-m", "torch.distributed.run",
        f"--nproc-per-node={math.prod(map(int, mesh.split('x')))}",
        "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--local-addr=localhost",
        "-m", "integration.sharded", str(source), str(tmp_path / "grown"), str(tmp_path),
        mesh,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=CHECKOUT
    )
    assert done.returncode == 0, done.stderr[-6000:]
    expected = load_file(tmp_path / "grown" / "model.safetensors")
    dcp_to_torch_save(tmp_path / "new", tmp_path / "new.pt")
    found = torch.load(tmp_path / "new.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_unsharded_models_are_filled_too() -> None:
    model = llama()
    state = grow(model, TARGET, **FILL).state_dict()
    config = grown_config(model.config, TARGET, **FILL)
    filled = grow_into(model_class(config)(config), model, TARGET, **FILL)
    assert all((filled.state_dict()[name] == x).all() for name, x in state.items())


def test_the_model_to_fill_must_be_of_the_grown_sizes() -> None:
    model = llama()
    with pytest.raises(GrowthError, match=r"build it from growproof\.grown_config"):
        grow_into(llama(), model, TARGET)
