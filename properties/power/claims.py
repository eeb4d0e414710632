"""Every claim and its place: sentence ↔ laws ↔ theorems ↔ tier.

The README's table is made from this list (`python -m properties.power.claims`), and a test
keeps it complete in both directions: every law and every main theorem is in one row.
"""

from __future__ import annotations

from typing import NamedTuple

BEGIN, END = "<!-- claims -->", "<!-- /claims -->"


class Claim(NamedTuple):
    """What is claimed, the tests that sample it, the theorems that prove it."""

    sentence: str
    laws: tuple[str, ...] = ()
    theorems: tuple[str, ...] = ()

    @property
    def tier(self) -> str:
        """The tiers it rests on."""
        tiers = ["proved"] if self.theorems else []
        if any(law.endswith("_exhaustive") for law in self.laws):
            tiers.append("exhaustive")
        if any(law == "is_certified" for law in self.laws):
            tiers.append("certified")
        rest = [
            w
            for w in self.laws
            if not w.endswith("_exhaustive") and w != "is_certified"
        ]
        return ", ".join([*tiers, "sampled"] if rest else tiers)


CLAIMS: tuple[Claim, ...] = (
    Claim("Reshape, pad, reshape back is scattering along a strictly increasing map",
          ("padding_factors_is_scattering_exhaustive", "factors_multiply_to_axes",
           "old_layers_keep_their_order_exhaustive"),
          ("query_map", "key_value_map", "reshape_pad_flatten")),
    Claim("Rotary pairs, angles and factors survive a larger head_dim",
          ("rotary_keeps_pairs_and_frequencies", "rotary_halves_stay_paired_exhaustive",
           "rotary_factor_is_never_truncated_exhaustive"),
          ("rotary_halves_map", "partial_rotary_pads", "full_rotary_pads",
           "frequencies_kept")),
    Claim("A zero inserted into an ordered sum is an exact no-op, in floats too", (),
          ("zero_insertion", "float_laws", "powers_of_two", "ieee_zero_insertion",
           "ieee_without_overflow")),
    Claim("Linear layers and biases map padded to padded",
          ("projections_are_padded",), ("linear_padded",)),
    Claim("Attention maps padded hidden states to padded hidden states",
          ("attention_maps_padded_to_padded", "attention_is_bitwise",
           "scores_keep_their_scale"),
          ("attention_padded", "scores_kept", "new_heads_silent", "score_scale_field")),
    Claim("The gated MLP maps padded to padded, for any activation",
          ("gate_and_up_are_padded", "mlp_maps_padded_to_padded"),
          ("mlp_padded", "mlp_new_units_zero")),
    Claim("RMSNorm is exact with weight·√(D/D') and ε·D/D', and not without the latter",
          ("norms_are_unchanged", "eps_grows_along"),
          ("rmsnorm_scaled", "rmsnorm_scaled_stream", "rmsnorm_eps_needed")),
    Claim("LayerNorm cannot be padded by parameters alone; centred writers make it exact",
          (), ("layernorm_impossible", "centring_behind_layernorm", "centred_writer",
               "layernorm_zero_mean", "masked_norm_padded")),
    Claim("Embedding and head are padded; every new lane of every tap is zero",
          ("embedding_is_padded", "head_ignores_new_lanes",
           "new_lanes_are_zero_at_every_tap"), ("decoder_padded",)),
    Claim("Added layers are silent, wherever they lie", ("new_layers_add_nothing",), ()),
    Claim("The logits are unchanged",
          ("logits_are_unchanged", "worst_cases_stay_within_budget", "transformers_agrees", "is_certified",
           "decoder_is_bitwise", "every_tap_is_the_padded_one"),
          ("decoder_logits", "centred_logits", "rmsnorm_grows", "layernorm_grows",
           "centred_streams", "layernorm_decoder_lossless")),
    Claim("In bf16, fp16 and fp32 one rounding of the weights is all that is lost",
          ("low_precision_loses_one_rounding", "weights_are_rounded_once"), ()),
    Claim("A trainable fill changes nothing, and new parameters receive gradients",
          ("old_gradients_are_kept", "new_parameters_train"),
          ("attention_trainable", "mlp_trainable", "decoder_trainable")),
    Claim("Each step of the article is necessary", ("each_omission_is_worse_than_the_next",
           "naive_output_projection_cuts_values_off"),
          ("unscaled_norm", "naive_pad_false", "unscaled_query_false",
           "naive_pad_softmax", "unscaled_query_softmax")),
    Claim("Growing is an operation: identity, composition, inverse, linear, equivariant",
          ("growing_by_nothing_is_the_identity", "two_steps_are_one",
           "heads_and_head_dim_commute", "shrink_inverts_grow",
           "shrink_inverts_grow_bitwise", "growing_is_linear",
           "growing_commutes_with_permuting_heads",
           "growing_commutes_with_permuting_the_residual",
           "parameter_count_is_the_tables"), ()),
    Claim("The article's own tensors and counts",
          ("value_states_get_zeros_within_each_head", "more_heads_append_zeros",
           "grown_projection_is_the_articles_matrix", "bias_grows_along",
           "attention_output_is_the_articles", "parameter_counts_are_the_articles",
           "a_real_size_grows_on_the_meta_device"), ()),
    Claim("What cannot be exact is refused, with the reason and the way out",
          ("refused_with_the_reason", "rope_types_that_do_not_survive",
           "clone_says_what_it_cannot_run", "tied_layernorm_cannot_be_centred",
           "masked_stays_masked", "unknown_names_and_families",
           "q_k_layernorm_is_exact_by_another_route"), ()),
    Claim("Nothing else changes: source, dtype, mode, tying, config, disk, cache, padding",
          ("source_is_untouched", "nothing_is_shared", "dtype_device_and_mode",
           "everything_is_finite", "tying_is_kept", "sizes_are_those_asked_for",
           "saves_and_loads", "generates_with_a_cache", "left_padding",
           "dropout_is_kept"), ()),
)  # fmt: skip


def markdown() -> str:
    """The README's table: claim, tier, laws, theorems."""
    lines = ["| claim | tier | laws (`test_…`) | theorems |", "|---|---|---|---|"]
    for claim in CLAIMS:
        laws = " ".join(f"`{law}`" for law in claim.laws) or "–"
        theorems = " ".join(f"`{name}`" for name in claim.theorems) or "–"
        lines.append(f"| {claim.sentence} | {claim.tier} | {laws} | {theorems} |")
    return "\n".join(lines)


def updated(readme: str) -> str:
    """The README with its table made anew. Raises ValueError if it has no place."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} … {END}")
    return f"{before}{begin}\n{markdown()}\n{end}{after}"


if __name__ == "__main__":
    from pathlib import Path

    path = Path(__file__).parents[2] / "README.md"
    path.write_text(updated(path.read_text()))
