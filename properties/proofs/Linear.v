From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith Insertion.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*     scattered == W' is W along (out, in) embeddings, zero elsewhere.       *)
(*     scatter W == the one such W', as a function (see scatterP).            *)
(*   agree2 W W' == W' holds W at the old places; its other entries are free. *)
(*  zero_row W' o == the new row o of W' is zero in the old columns (its other*)
(*                  columns only ever meet zeros, and are free).              *)
(******************************************************************************)

Section Linear.
Variables (A : arith) (no no' ni ni' : nat) (eo ei : nat -> nat).
Implicit Types (W : mat A) (b x : vec A).

Definition agree2 W W' := forall o i, o < no -> i < ni -> W' (eo o) (ei i) = W o i.
Definition zero_row W' o := forall i, i < ni -> W' o (ei i) = zero.
Definition scattered W W' := agree2 W W' /\ forall o i, o < no' -> i < ni' ->
  ~~ img no eo o || ~~ img ni ei i -> W' o i = zero.

Hypotheses (eoP : emb no no' eo) (eiP : emb ni ni' ei).

Definition scatter W : mat A := fun o i => pad no eo (fun o => pad ni ei (W o) i) o.

Lemma scatterP W : scattered W (scatter W).
Proof.
split=> [o i o_lt i_lt|o i o_lt i_lt].
  by rewrite /scatter (pad_at _ eoP) ?(pad_at _ eiP).
case: (boolP (img no eo o)) => [/imgP[k k_lt <-] /= i_off|o_off _]; last exact: pad_off.
by rewrite /scatter (pad_at _ eoP) ?pad_off.
Qed.

Lemma scattered_row W W' o :
  scattered W W' -> o < no' -> ~~ img no eo o -> zero_row W' o.
Proof. by case=> _ W0 o_lt o_off i i_lt; rewrite W0 ?o_off //; apply eiP.1. Qed.

Lemma scattered_col W W' i :
  scattered W W' -> i < ni' -> ~~ img ni ei i -> forall o, o < no' -> W' o i = zero.
Proof. by case=> _ W0 i_lt i_off o o_lt; rewrite W0 ?i_off ?orbT. Qed.

Lemma affine_old W W' b b' x x' : agree2 W W' -> agree no eo b b' ->
  padded ni ni' ei x x' -> agree no eo (affine ni W b x) (affine ni' W' b' x').
Proof.
move=> WW bb [xx x_off] o o_lt; rewrite /affine bb //; congr (_ +. _).
apply: (zero_insertion eiP) => // [i i_lt|j j_lt j_off]; first exact: WW.
by right; apply: x_off.
Qed.

Lemma affine_zero W' b' x' o : off ni ni' ei x' ->
  zero_row W' o -> b' o = zero -> affine ni' W' b' x' o = zero.
Proof.
move=> x_off W0 b0; rewrite /affine b0 addx0; apply: osum0 => j j_lt.
case: (boolP (img ni ei j)) => [/imgP[i i_lt <-]|j_off].
  by rewrite W0 // mul0x.
by rewrite x_off // mulx0.
Qed.

(** MAIN 3 linear_padded: A linear layer whose weight and bias are scattered
    along its output and input axes maps the padded input to the padded output. *)
Theorem linear_padded W W' b b' x x' :
  scattered W W' -> padded no no' eo b b' -> padded ni ni' ei x x' ->
  padded no no' eo (affine ni W b x) (affine ni' W' b' x').
Proof.
move=> WW [bb b_off] xx; split=> [|o o_lt o_off].
  exact: affine_old WW.1 bb xx.
by apply: affine_zero xx.2 (scattered_row WW o_lt o_off) (b_off _ _ _).
Qed.

End Linear.
