From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Insertion Linear.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*  mlp g f D F p x == the MLP, D lanes to D through F units, f any           *)
(*                   activation: down (f (gate x) *. up x) if it is gated     *)
(*                   (g), else down (f (up x)).                               *)
(*  mlp_scattered == p' is p scattered along the axes, zero elsewhere.        *)
(*       mlp_free == as much as is needed of that: see Freedom.v.             *)
(******************************************************************************)

Record mlp_weights (A : arith) := MlpWeights {
  wg : mat A; bg : vec A; wu : mat A; bu : vec A; wd : mat A; bd : vec A }.

Section Mlp.
Variables (A : arith) (gated : bool) (f : A -> A).

Definition hidden D (p : mlp_weights A) x : vec A := fun u =>
  let: up := affine D (wu p) (bu p) x u in
  if gated then f (affine D (wg p) (bg p) x u) *. up else f up.
Definition mlp D F p x := affine F (wd p) (bd p) (hidden D p x).

Variables (D D' F F' : nat) (ed ef : nat -> nat).
Hypotheses (edP : emb D D' ed) (efP : emb F F' ef).

Record mlp_free (p p' : mlp_weights A) := MlpFree {
  gate_old : agree2 F D ef ed (wg p) (wg p');
  bg_old : agree F ef (bg p) (bg p');
  up_old : agree2 F D ef ed (wu p) (wu p');
  bu_old : agree F ef (bu p) (bu p');
  down_old : agree2 D F ed ef (wd p) (wd p');
  down_row : forall i, i < D' -> ~~ img D ed i -> zero_row F ef (wd p') i;
  bd_pad : padded D D' ed (bd p) (bd p');
  unit_silent : forall u, u < F' -> ~~ img F ef u ->
    [\/ forall i, i < D' -> wd p' i u = zero,
        [/\ gated \/ f zero = zero, zero_row D ed (wu p') u & bu p' u = zero]
      | [/\ gated, f zero = zero, zero_row D ed (wg p') u & bg p' u = zero]] }.

Record mlp_scattered (p p' : mlp_weights A) := MlpScattered {
  gate_at : scattered F F' D D' ef ed (wg p) (wg p');
  bg_at : padded F F' ef (bg p) (bg p');
  up_at : scattered F F' D D' ef ed (wu p) (wu p');
  bu_at : padded F F' ef (bu p) (bu p');
  down_at : scattered D D' F F' ed ef (wd p) (wd p');
  bd_at : padded D D' ed (bd p) (bd p') }.

Lemma mlp_scattered_free p p' : mlp_scattered p p' -> mlp_free p p'.
Proof.
case=> [[g _] [bg_ _] [u _] [bu_ _] dS bd_]; split=> //; first by case: dS.
  by move=> i i_lt i_off; apply: (scattered_row efP dS i_lt i_off).
by move=> j j_lt j_off; apply: Or31; apply: scattered_col dS j_lt j_off.
Qed.

Lemma mlp_grown p p' x x' : mlp_free p p' -> padded D D' ed x x' ->
  padded D D' ed (mlp D F p x) (mlp D' F' p' x').
Proof.
move=> pP xP; have hid_old : agree F ef (hidden D p x) (hidden D' p' x').
  move=> u u_lt; rewrite /hidden (affine_old edP (gate_old pP) (bg_old pP) xP) //.
  by rewrite (affine_old edP (up_old pP) (bu_old pP) xP).
have hid_new i u : i < D' -> u < F' -> ~~ img F ef u ->
    wd p' i u = zero \/ hidden D' p' x' u = zero.
  move=> i_lt u_lt u_off; rewrite /hidden.
  case: (unit_silent pP u_lt u_off) => [W0|[f0 W0 b0]|[-> f0 W0 b0]].
  - by left; apply: W0.
  - right; rewrite (affine_zero xP.2 W0 b0) mulx0; case: f0 => [->//|->].
    by rewrite if_same.
  by right; rewrite [X in f X](affine_zero xP.2 W0 b0) f0 mul0x.
split=> [i i_lt|i i_lt i_off]; rewrite /mlp /affine.
  rewrite (bd_pad pP).1 //; congr (_ +. _).
  apply: (zero_insertion efP) hid_old _ => [u u_lt|u u_lt u_off].
    exact: (down_old pP).
  by apply: hid_new => //; apply: edP.1.
rewrite (bd_pad pP).2 // addx0; apply: osum0 => u u_lt.
case: (boolP (img F ef u)) => [/imgP[u0 u0_lt <-]|u_off].
  by rewrite (down_row pP) ?mul0x.
by case: (hid_new i u i_lt u_lt u_off) => ->; rewrite (mul0x, mulx0).
Qed.

(** MAIN 5 mlp_padded: An MLP, gated or plain, whose weights are scattered along
    the axes maps padded hidden states to padded hidden states, for any activation. *)
Theorem mlp_padded p p' x x' : mlp_scattered p p' -> padded D D' ed x x' ->
  padded D D' ed (mlp D F p x) (mlp D' F' p' x').
Proof. by move/mlp_scattered_free; apply: mlp_grown. Qed.

(** MAIN 5 mlp_new_units_zero: Each new unit of a zero-filled gated MLP is zero, for
    any activation, f 0 = 0 or not, since the gate is multiplied by up. *)
Theorem mlp_new_units_zero p p' x x' : gated -> mlp_scattered p p' -> padded D D' ed x x' ->
  off F F' ef (hidden D' p' x').
Proof.
move=> g pP xP u u_lt u_off; have W0 := scattered_row edP (up_at pP) u_lt u_off.
have b0 := (bu_at pP).2 u u_lt u_off.
by rewrite /hidden g [X in _ *. X](affine_zero xP.2 W0 b0) mulx0.
Qed.

End Mlp.

(** MAIN 5 mlp_spread: An MLP whose units lie in n equal blocks, each of which is
    padded at its end, maps padded hidden states to padded hidden states. *)
Theorem mlp_spread (A : arith) gated f n b b' D D' ed (p p' : mlp_weights A) x x' :
  b <= b' -> emb D D' ed ->
  mlp_scattered D D' (n * b) (n * b') ed (spreadmap b b') p p' -> padded D D' ed x x' ->
  padded D D' ed (mlp gated f D (n * b) p x) (mlp gated f D' (n * b') p' x').
Proof. by move=> /(spread_map n)[efP _] edP; apply: mlp_padded. Qed.
