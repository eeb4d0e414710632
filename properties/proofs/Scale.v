From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith Rotary RmsNorm.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(** MAIN 4 score_scale_field: In a real closed field, multiplying q by
    sqrt(K'/K) is an exact factor, and dividing the scores by sqrt(K') instead
    of sqrt(K) takes it back. *)
Theorem score_scale_field (R : rcfType) (K K' : nat) (c :=
  Num.sqrt (K'%:R / K%:R : R)) :
  (0 < K)%N -> (0 < K')%N ->
  @homothety (ring_arith R) ( *%R c)
  /\ forall s, c * s / Num.sqrt K'%:R = s / Num.sqrt K%:R.
Proof.
move=> K_gt0 K'_gt0; split; first by split=> x y /=; [apply: mulrDr | rewrite mulrA].
move=> s; rewrite /c sqrtrM ?ler0n // sqrtrV ?ler0n // mulrAC [_ / _ / _]mulrAC divff.
  by rewrite mul1r mulrC.
by rewrite gt_eqF // sqrtr_gt0 ltr0n.
Qed.
