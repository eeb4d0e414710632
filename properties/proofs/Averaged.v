From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Dealt Mlp Experts RmsNorm LayerNorm QkNorm.
From Growproof Require Import Decoder Centred Families Written.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(******************************************************************************)
(* Where a grower writes into new lanes the mean of the old ones, centring    *)
(* what it wrote is growing what was centred.                                 *)
(******************************************************************************)

Section Averaged.
Variables (R : rcfType) (power : R -> R -> R) (f : family) (c : config R) (g : growth).
Hypothesis gP : possible c g.
Let A := ring_arith R.
Local Notation D := (hid (old g)).
Local Notation D' := (hid (new g)).
Local Notation zero_writer := (zero_writer (R := R) g).
Local Notation silent_params := (silent_params (R := R) g).
Local Notation writes_layer := (writes_layer power f c g).

Let D_gt0 : (0 < D)%N. Proof. by have [] := sizes_gt0 gP. Qed.
Let D_le : (D <= D')%N := hid_fits gP.
Let D'_gt0 : (0 < D')%N := leq_trans D_gt0 D_le.

(* Centring takes the mean out of the old lanes and of those that hold it. *)
Lemma centre_average (x x' : nat -> R) : rpadded D D' id x x' ->
  rpadded D D' id (centre D x) (centre D' (average D x')).
Proof.
move=> [xE _]; have mE : mean D x' = mean D x.
  by rewrite /mean (eq_rsum (y := x)) // => i /xE.
pose y i := average D x' i - mean D x.
have yP : rpadded D D' id (centre D x) y.
  split=> [i i_lt|i _]; rewrite /y /average; first by rewrite i_lt [x' i]xE.
  by rewrite img_id => /negPf->; rewrite mE subrr.
suff cE i : centre D' (average D x') i = y i.
  by split=> [i i_lt|i i_lt i_off]; rewrite cE; [apply: yP.1 | apply: yP.2].
rewrite /y /centre; congr (_ - _); rewrite -[RHS]add0r.
have -> : 0 = mean D' y :> R.
  by rewrite (mean_padded D_gt0 (emb_id D_le) yP) mean_centre // mulr0.
rewrite /y meanD /mean rsum_const mulfK ?subrK // pnatr_eq0 -lt0n //.
Qed.

Lemma centre_average0 (x' : nat -> R) : (forall i, (i < D')%N -> x' i = 0) ->
  forall i, (i < D')%N -> centre D' (average D x') i = 0.
Proof.
move=> x'0 i i_lt; have xP : rpadded D D' id (fun=> 0) x'.
  by split=> j j_lt; [apply/x'0/(leq_trans j_lt) | move=> _; apply: x'0].
have [old new] := centre_average xP.
case: (ltnP i D) => [/old->|i_ge]; last by rewrite new // img_id -leqNgt.
by rewrite /centre /mean rsum_const !mul0r subr0.
Qed.

Lemma average_columns n n' e W W' : emb n n' e ->
  scattered (A := A) D D' n n' id e W W' ->
  scattered (A := A) D D' n n' id e (centred_columns D W)
    (centred_columns D' (fun i a => average D (W' ^~ a) i)).
Proof.
move=> [e_lt _] [WE W0]; have col a : (a < n)%N ->
    rpadded D D' id (centre D (W ^~ a)) (centre D' (average D (W' ^~ (e a)))).
  move=> a_lt; apply: centre_average; split=> [i i_lt|i i_lt i_off]; first exact: WE.
  by apply: W0; rewrite ?i_off ?e_lt.
split=> [i a i_lt a_lt|i a i_lt a_lt]; first exact: (col a a_lt).1.
case: (boolP (img n e a)) => [/imgP[a0 a0_lt <-]|a_off _]; last first.
  by apply: centre_average0 => // j j_lt; apply: W0; rewrite ?a_off ?orbT.
by rewrite orbF; apply: (col a0 a0_lt).2.
Qed.

Lemma average_mlp_at n n' e (p p' : mlp_weights A) : emb n n' e ->
  mlp_scattered D D' n n' id e p p' ->
  mlp_scattered (A := A) D D' n n' id e (@centred_mlp R D p)
    (@centred_mlp R D' (average_mlp D p')).
Proof.
move=> eP [gS gb uS ub dS db]; split=> //=; first exact: average_columns.
exact: centre_average.
Qed.

Lemma average_params_at l l' : writes_layer l l' ->
  writes_layer (centre_params D l) (centre_params D' (average_params D l')).
Proof.
have qmP := qm_emb gP.
case=> kdP n1P n2P o1P o2P qP kP [qS bqS kS bkS vS bvS oS boS] fP; split=> //=.
  split=> //=; first exact: average_columns.
  exact: centre_average.
move: fP; rewrite /writes_feed; case: (ffw l) (ffw l') => [p|s] [p'|s'] //=.
  exact/average_mlp_at/(mlp_fits gP).
move=> [ee [cE rE wP rS eS]]; exists ee; split=> //= e e_lt.
by apply: average_mlp_at => //; apply: eS.
Qed.

Lemma average_silent l : silent_params l ->
  silent_params (centre_params D' (average_params D l)).
Proof.
have mlp0 (p : mlp_weights A) : zero_writer p ->
    zero_writer (@centred_mlp R D' (average_mlp D p)).
  move=> [wd0 bd0]; split=> [i u i_lt|i i_lt]; last exact: centre_average0.
  by apply: centre_average0 => // j /wd0.
move=> [wo0 bo0 ff0]; split=> /= [i a i_lt|i i_lt|].
- by apply: centre_average0 => // j /wo0.
- exact: centre_average0.
by move: ff0; case: ffw => [p|s] /= => [|s0 e /s0]; apply: mlp0.
Qed.

End Averaged.
