"""What is claimed, in the order of its table, docs/claims.md; each law names the one it makes.

Theorems that prove a law are named there; here stand those that no law cites.
"""

from .registry import Claim

AXES = Claim(
    "Reshape, pad, reshape back is scattering along a strictly increasing map",
    ("dealt_map", "dealt_fits", "repeated_map", "spread_map"),
)
ROTARY = Claim(
    "Rotary pairs, angles and factors survive a larger head_dim",
    ("between_map", "between_rotary_pads", "frequencies_between"),
)
INSERTION = Claim(
    "A zero inserted into an ordered sum is an exact no-op, in floats too",
    ("zero_insertion", "float_laws", "powers_of_two", "ieee_zero_insertion",
     "ieee_without_overflow"),
)  # fmt: skip
LINEAR = Claim("Linear layers and biases map padded to padded")
ATTENTION = Claim(
    "Attention maps padded hidden states to padded hidden states",
    ("attention_dealt", "qk_norm_of_heads", "qk_norm_whole", "qk_layernorm_of_heads"),
)
MLP = Claim(
    "The MLP, gated, plain or of experts, maps padded to padded, for any activation",
    ("mlp_spread", "experts_padded"),
)
RMS_NORM = Claim(
    "RMSNorm is exact with weight·√(D/D') and ε·D/D', and not without the latter",
    ("rmsnorm_scaled_input",),
)
LAYER_NORM = Claim(
    "LayerNorm cannot be padded by parameters alone; centred writers make it exact",
    ("layernorm_impossible", "centring_behind_layernorm", "centred_writer",
     "layernorm_zero_mean", "masked_norm_padded"),
)  # fmt: skip
LANES = Claim("Embedding and head are padded; every new lane of every tap is zero")
DEPTH = Claim("Added layers are silent, wherever they lie")
VOCABULARY = Claim(
    "New tokens change no old logit, and are never chosen", ("silent_row",)
)
LOGITS = Claim(
    "The logits are unchanged",
    ("llama_lossless", "stablelm_lossless", "llama_twin", "written_by_growing",
     "rms_lossless", "masked_lossless", "same_width_lossless", "layernorm_lossless",
     "averaged_lossless", "families_lossless"),
)  # fmt: skip
CACHE = Claim(
    "With a key/value cache the logits are those without, grown or not",
    ("softmax_hides",),
)
TIED = Claim(
    "The decoder of the theorems is the clone, and transformers' own with its cache: the "
    "same integers on random models; and the clone bit for bit in binary64",
    ("run_logits", "numbers_logits", "cached_numbers_logits", "spelled_logits",
     "spelled_in_fields", "words_logits", "binary64_dot"),
)  # fmt: skip
PRECISION = Claim(
    "In bf16, fp16 and fp32 one rounding of the weights is all that is lost",
    ("llama_backward", "rounding_is_near"),
)
TRAINING = Claim(
    "A trainable fill changes nothing, and new parameters receive gradients",
    ("attention_trainable", "mlp_trainable", "decoder_trainable"),
)
NECESSITY = Claim("Each step of the article is necessary")
ALGEBRA = Claim(
    "Growing is an operation: identity, composition, inverse, linear, equivariant"
)
ARTICLE = Claim("The article's own tensors and counts")
REFUSALS = Claim("What cannot be exact is refused, with the reason and the way out")
HYGIENE = Claim(
    "Nothing else changes: source, dtype, mode, tying, config, disk, padding"
)
CLAIMS = tuple(x for x in vars().copy().values() if isinstance(x, Claim))
