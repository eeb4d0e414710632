From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention
  Dealt Mlp Experts RmsNorm LayerNorm Scale QkNorm Frequencies Decoder Freedom
  Centred Grower Families Written
  Lossless Fitting Run Cache Integers Floats Spelled
  InFields Binary Necessity RealSoftmax.

(* The assumptions of every main theorem, to compare with assumptions.expected. *)

Goal True. idtac "1 query_map:". Abort.
Print Assumptions query_map.
Goal True. idtac "1 key_value_map:". Abort.
Print Assumptions key_value_map.
Goal True. idtac "1 rotary_halves_map:". Abort.
Print Assumptions rotary_halves_map.
Goal True. idtac "1 between_map:". Abort.
Print Assumptions between_map.
Goal True. idtac "1 spread_map:". Abort.
Print Assumptions spread_map.
Goal True. idtac "1 reshape_pad_flatten:". Abort.
Print Assumptions reshape_pad_flatten.
Goal True. idtac "1 partial_rotary_pads:". Abort.
Print Assumptions partial_rotary_pads.
Goal True. idtac "1 full_rotary_pads:". Abort.
Print Assumptions full_rotary_pads.
Goal True. idtac "1 between_rotary_pads:". Abort.
Print Assumptions between_rotary_pads.
Goal True. idtac "1 dealt_map:". Abort.
Print Assumptions dealt_map.
Goal True. idtac "1 dealt_fits:". Abort.
Print Assumptions dealt_fits.
Goal True. idtac "1 repeated_map:". Abort.
Print Assumptions repeated_map.
Goal True. idtac "2 zero_insertion:". Abort.
Print Assumptions zero_insertion.
Goal True. idtac "3 linear_padded:". Abort.
Print Assumptions linear_padded.
Goal True. idtac "4 attention_padded:". Abort.
Print Assumptions attention_padded.
Goal True. idtac "4 scores_kept:". Abort.
Print Assumptions scores_kept.
Goal True. idtac "4 new_heads_silent:". Abort.
Print Assumptions new_heads_silent.
Goal True. idtac "4 attention_dealt:". Abort.
Print Assumptions attention_dealt.
Goal True. idtac "4 score_scale_field:". Abort.
Print Assumptions score_scale_field.
Goal True. idtac "4 qk_norm_of_heads:". Abort.
Print Assumptions qk_norm_of_heads.
Goal True. idtac "4 qk_norm_whole:". Abort.
Print Assumptions qk_norm_whole.
Goal True. idtac "4 qk_layernorm_of_heads:". Abort.
Print Assumptions qk_layernorm_of_heads.
Goal True. idtac "4 frequencies_kept:". Abort.
Print Assumptions frequencies_kept.
Goal True. idtac "4 frequencies_between:". Abort.
Print Assumptions frequencies_between.
Goal True. idtac "4 softmax_hides:". Abort.
Print Assumptions softmax_hides.
Goal True. idtac "5 mlp_padded:". Abort.
Print Assumptions mlp_padded.
Goal True. idtac "5 mlp_new_units_zero:". Abort.
Print Assumptions mlp_new_units_zero.
Goal True. idtac "5 mlp_spread:". Abort.
Print Assumptions mlp_spread.
Goal True. idtac "5 experts_padded:". Abort.
Print Assumptions experts_padded.
Goal True. idtac "6 rmsnorm_scaled:". Abort.
Print Assumptions rmsnorm_scaled.
Goal True. idtac "6 rmsnorm_scaled_stream:". Abort.
Print Assumptions rmsnorm_scaled_stream.
Goal True. idtac "6 rmsnorm_eps_needed:". Abort.
Print Assumptions rmsnorm_eps_needed.
Goal True. idtac "6 rmsnorm_scaled_input:". Abort.
Print Assumptions rmsnorm_scaled_input.
Goal True. idtac "7 masked_norm_padded:". Abort.
Print Assumptions masked_norm_padded.
Goal True. idtac "7 centring_behind_layernorm:". Abort.
Print Assumptions centring_behind_layernorm.
Goal True. idtac "7 centred_writer:". Abort.
Print Assumptions centred_writer.
Goal True. idtac "7 silent_row:". Abort.
Print Assumptions silent_row.
Goal True. idtac "7 layernorm_zero_mean:". Abort.
Print Assumptions layernorm_zero_mean.
Goal True. idtac "7 layernorm_impossible:". Abort.
Print Assumptions layernorm_impossible.
Goal True. idtac "8 decoder_padded:". Abort.
Print Assumptions decoder_padded.
Goal True. idtac "8 decoder_logits:". Abort.
Print Assumptions decoder_logits.
Goal True. idtac "8 centred_logits:". Abort.
Print Assumptions centred_logits.
Goal True. idtac "8 rmsnorm_grows:". Abort.
Print Assumptions rmsnorm_grows.
Goal True. idtac "8 layernorm_grows:". Abort.
Print Assumptions layernorm_grows.
Goal True. idtac "8 centred_streams:". Abort.
Print Assumptions centred_streams.
Goal True. idtac "8 layernorm_decoder_lossless:". Abort.
Print Assumptions layernorm_decoder_lossless.
Goal True. idtac "8 llama_lossless:". Abort.
Print Assumptions llama_lossless.
Goal True. idtac "8 llama_twin:". Abort.
Print Assumptions llama_twin.
Goal True. idtac "8 stablelm_lossless:". Abort.
Print Assumptions stablelm_lossless.
Goal True. idtac "8 written_by_growing:". Abort.
Print Assumptions written_by_growing.
Goal True. idtac "8 rms_lossless:". Abort.
Print Assumptions rms_lossless.
Goal True. idtac "8 masked_lossless:". Abort.
Print Assumptions masked_lossless.
Goal True. idtac "8 same_width_lossless:". Abort.
Print Assumptions same_width_lossless.
Goal True. idtac "8 layernorm_lossless:". Abort.
Print Assumptions layernorm_lossless.
Goal True. idtac "8 averaged_lossless:". Abort.
Print Assumptions averaged_lossless.
Goal True. idtac "8 families_lossless:". Abort.
Print Assumptions families_lossless.
Goal True. idtac "8 layers_every_nth:". Abort.
Print Assumptions layers_every_nth.
Goal True. idtac "8 vocabulary_rows:". Abort.
Print Assumptions vocabulary_rows.
Goal True. idtac "8 vocabulary_new:". Abort.
Print Assumptions vocabulary_new.
Goal True. idtac "8 run_logits:". Abort.
Print Assumptions run_logits.
Goal True. idtac "8 cache_whole:". Abort.
Print Assumptions cache_whole.
Goal True. idtac "8 cache_grown:". Abort.
Print Assumptions cache_grown.
Goal True. idtac "8 numbers_logits:". Abort.
Print Assumptions numbers_logits.
Goal True. idtac "8 cached_numbers_logits:". Abort.
Print Assumptions cached_numbers_logits.
Goal True. idtac "8 spelled_logits:". Abort.
Print Assumptions spelled_logits.
Goal True. idtac "8 spelled_in_fields:". Abort.
Print Assumptions spelled_in_fields.
Goal True. idtac "8 words_logits:". Abort.
Print Assumptions words_logits.
Goal True. idtac "9 attention_trainable:". Abort.
Print Assumptions attention_trainable.
Goal True. idtac "9 mlp_trainable:". Abort.
Print Assumptions mlp_trainable.
Goal True. idtac "9 decoder_trainable:". Abort.
Print Assumptions decoder_trainable.
Goal True. idtac "10 llama_backward:". Abort.
Print Assumptions llama_backward.
Goal True. idtac "10 float_laws:". Abort.
Print Assumptions float_laws.
Goal True. idtac "10 powers_of_two:". Abort.
Print Assumptions powers_of_two.
Goal True. idtac "10 rounding_is_near:". Abort.
Print Assumptions rounding_is_near.
Goal True. idtac "10 ieee_zero_insertion:". Abort.
Print Assumptions ieee_zero_insertion.
Goal True. idtac "10 ieee_without_overflow:". Abort.
Print Assumptions ieee_without_overflow.
Goal True. idtac "10 binary64_dot:". Abort.
Print Assumptions binary64_dot.
Goal True. idtac "11 unscaled_norm:". Abort.
Print Assumptions unscaled_norm.
Goal True. idtac "11 naive_pad_false:". Abort.
Print Assumptions naive_pad_false.
Goal True. idtac "11 unscaled_query_false:". Abort.
Print Assumptions unscaled_query_false.
Goal True. idtac "11 naive_pad_softmax:". Abort.
Print Assumptions naive_pad_softmax.
Goal True. idtac "11 unscaled_query_softmax:". Abort.
Print Assumptions unscaled_query_softmax.
