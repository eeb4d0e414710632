"""A side of the comparison: a checkpoint's config, its decoder, and its parameters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from growproof.checkpoints import Lazy, read_config, read_weights
from growproof.clone import ACTIVATIONS
from growproof.decoder import SURVIVING_ROPE_TYPES, Decoder
from growproof.models import decoder_of, model_class
from growproof.padding import check
from growproof.quantised import Quantised, is_quantised
from growproof.reading import generation_fields


@dataclass(frozen=True)
class Side:
    """A checkpoint: its directory, config, decoder and parameters (read at access).

    codes: where its weights are quantised, whose parameters are the decoded ones; or None.
    """

    directory: Path
    config: Any
    decoder: Decoder
    state: Lazy
    codes: Quantised | None = None

    @classmethod
    def of(cls, directory: Path) -> "Side":
        """Raises ValueError where there is none, or config and weights disagree."""
        coded = Quantised.at(directory) if is_quantised(directory) else None
        config = coded.config if coded else read_config(directory)
        decoder = decoder_of(config)
        generation_fields(directory)
        state = coded.state() if coded else read_weights(directory, config)
        check(state, decoder)
        return cls(directory, config, decoder, state, coded)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the embedding is stored in."""
        return self.state["embed.weight"].dtype

    @property
    def has_clone(self) -> bool:
        """True where the eager clone has the decoder's activation and rope types."""
        d = self.decoder
        ropes = {kind.rotary.kind for kind in d.kinds if kind.rotary}
        return d.activation in ACTIVATIONS and ropes <= {*SURVIVING_ROPE_TYPES}

    def load(self) -> Any:
        """The model in transformers, float32. ValueError where it is there in part."""
        model, info = model_class(self.config).from_pretrained(
            self.directory, dtype=torch.float32, output_loading_info=True
        )
        wrong = {k: sorted(map(str, v)) for k, v in info.items() if v}
        if wrong:
            raise ValueError(f"transformers loads it only in part: {wrong}")
        return model.eval()
