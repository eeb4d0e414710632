From Coq Require Import Reals Lra.
From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith Attention Necessity.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*    reals == Coq's real numbers, an arith.                                  *)
(*        u == its one.                                                       *)
(*  softmax == exp s_i over the sum of all exp s_j.                           *)
(*  over K s == the score s over sqrt K.                                      *)
(******************************************************************************)

Definition reals := @Arith R R0 Rplus Rmult Rplus_0_r Rplus_0_l Rmult_0_l Rmult_0_r.
Definition softmax (s : seq R) : seq R :=
  [seq exp x / foldr Rplus R0 [seq exp y | y <- s] | x <- s]%R.
Definition over (K s : R) := (s / sqrt K)%R.

Local Notation nomask := (fun _ _ => id).
Local Notation norot := (fun=> id).

Lemma softmax_inj a b :
  (1 * (nth R0 (softmax [:: R0; a]) 1 * 1)
   = 1 * (nth R0 (softmax [:: R0; b]) 1 * 1))%R ->
  a = b.
Proof.
rewrite /softmax /= exp_0 !Rmult_1_r !Rmult_1_l !Rplus_0_r => E; apply: exp_inv.
have := exp_pos a; have := exp_pos b; move: (exp a) (exp b) E => u v E v_gt0 u_gt0.
have : (u / (1 + u) * ((1 + u) * (1 + v)) = v / (1 + v) * ((1 + u) * (1 + v)))%R.
  by rewrite E.
have -> : (u / (1 + u) * ((1 + u) * (1 + v)) = u * (1 + v))%R by field; lra.
have -> : (v / (1 + v) * ((1 + u) * (1 + v)) = v * (1 + u))%R by field; lra.
lra.
Qed.

Lemma over0 K : over K R0 = R0.
Proof. exact: Rmult_0_l. Qed.

Definition u : reals := R1.

(** MAIN 11 naive_pad_softmax: With the softmax of exponentials and
    scores over sqrt(head_dim), padding the projections of two heads at their end
    while head_dim grows from 1 to 2 does not give the padded output. *)
Theorem naive_pad_softmax
    (p := @Attn reals (unit_at u 0 0) (fun=> zero) (unit_at u 0 0) (fun=> zero)
                      (unit_at u 1 0) (fun=> zero) (unit_at u 1 1) (fun=> zero))
    (x := unit_at u 1 0) :
  ~ @padded reals 2 4 id
      (@attention reals softmax nomask 2 (Dims 2 2 1 1) norot (over 1) id id p x 1)
      (@attention reals softmax nomask 2 (Dims 4 2 1 2) norot (over 2) id id p x 1).
Proof.
apply: naive_pad_false => [|/=]; first exact: Rmult_1_l.
rewrite !over0 => /softmax_inj; rewrite /over /u /Rdiv Rmult_1_l => E.
by have := Rinv_0_lt_compat _ (sqrt_lt_R0 2 ltac:(lra)); lra.
Qed.

(** MAIN 11 unscaled_query_softmax: With the softmax of exponentials and
    scores over sqrt(head_dim), leaving out the factor on q while head_dim grows
    from 1 to 4 does not give the padded output. *)
Theorem unscaled_query_softmax
    (p := @Attn reals (unit_at u 0 0) (fun=> zero) (unit_at u 0 0) (fun=> zero)
                      (unit_at u 0 0) (fun=> zero) (unit_at u 0 0) (fun=> zero))
    (x := unit_at u 1 0) :
  ~ @padded reals 1 1 id
      (@attention reals softmax nomask 2 (Dims 1 1 1 1) norot (over 1) id id p x 1)
      (@attention reals softmax nomask 2 (Dims 1 1 1 4) norot (over 4) id id p x 1).
Proof.
apply: unscaled_query_false => [|/=]; first exact: Rmult_1_l.
rewrite !over0 => /softmax_inj; rewrite /over /u sqrt_1.
have -> : sqrt 4 = 2%R by rewrite -(sqrt_square 2); [congr sqrt; lra | lra].
lra.
Qed.
