"""What a config says: the fields that were asked for, and those that nobody asked for."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

# fields that say how a model is trained, stored or asked, not what it computes
INERT = re.compile(
    r".*(dropout|pdrop|initializer|_token_id|router_aux|router_jitter|summary_).*"
    r"|use_cache|max_position_embeddings|output_router_logits|pretraining_tp"
    r"|is_decoder|dtype|norm_size|max_window_layers|_sliding_window_pattern"
    r"|no_rope_layer_interval|original_max_position_embeddings|num_local_experts"
    r"|use_sliding_window"
)


class Asked:
    """A config that remembers which of its fields were asked for."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self.config, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or a default where the config has none or says None."""
        self.seen.add(name)
        found = getattr(self.config, name, None)
        return default if found is None else found


def is_table(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether rope parameters are those of one layer type among several."""
    return isinstance(value, Mapping)


@functools.cache
def rope_types() -> tuple[str, ...]:
    """Those that transformers computes."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ("default", *ROPE_INIT_FUNCTIONS)


# what transformers reads of any config, its class's or not → which values change nothing
UNDECLARED: dict[str, Callable[[Any, Any], bool]] = {
    "is_causal": lambda got, c: got is True,
    "sliding_window": lambda got, c: got >= c.max_position_embeddings,
    "attention_chunk_size": lambda got, c: False,
    "layer_types": lambda got, c: {*got} == {"full_attention"},
    "head_dim": lambda got, c: got == c.hidden_size // c.num_attention_heads,
    "transformers_weights": lambda got, c: False,
}


@functools.cache
def defaults(config_class: Any) -> dict[str, Any]:
    """The fields that a config's class declares, and their values where none is said."""
    return config_class().to_dict()


@functools.cache
def switches(config_class: Any) -> dict[str, Any]:
    """The fields of a family's own that may change what it computes, and their defaults."""
    from transformers import PretrainedConfig

    common, own = defaults(PretrainedConfig), defaults(config_class)
    return {n: v for n, v in own.items() if n not in common and not INERT.fullmatch(n)}
