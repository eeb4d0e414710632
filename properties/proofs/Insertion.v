From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(** For any sum and any start: it is enough that the inserted terms change no
    partial sum. *)
Section Fold.
Variables (S : Type) (plus : S -> S -> S) (start : S).
Implicit Types f g : nat -> S.

Fixpoint fold n f := if n is m.+1 then plus (fold m f) (f m) else start.

Lemma fold_insert n m e f g : emb n m e -> (forall i, i < n -> g (e i) = f i) ->
  (forall k j, j < m -> ~~ img n e j -> plus (fold k f) (g j) = fold k f) ->
  fold m g = fold n f.
Proof.
elim: m n => [|m IHm] n [e_m e_incr] g_at g_off.
  by case: n e_m {e_incr g_at g_off} => // n /(_ 0 isT).
case: n e_m e_incr g_at g_off => [|n] e_m e_incr g_at g_off.
  have E : fold m g = start by apply: (IHm 0) => // k j j_m; apply/g_off/ltnW.
  by rewrite /= E (g_off 0).
have [en_m|en_ne] := eqVneq (e n) m.
  rewrite /= -{2}en_m g_at // (IHm n) //.
  - by split=> [i i_n|i j i_j /ltnW/e_incr->//]; rewrite -en_m e_incr.
  - by move=> i /ltnW/g_at.
  move=> k j j_m /imgP j_off; apply: g_off; first exact: ltnW.
  apply/imgP => -[i]; rewrite ltnS leq_eqVlt => /orP[/eqP->|i_n] eij.
    by rewrite -eij en_m ltnn in j_m.
  by apply: j_off; exists i.
have e_lt i : i < n.+1 -> e i < m.
  move=> i_n; have: e i <= e n.
    by move: i_n; rewrite ltnS leq_eqVlt => /orP[/eqP->|/e_incr/(_ (ltnSn n))/ltnW].
  by move/leq_ltn_trans; apply; rewrite ltn_neqAle en_ne -ltnS e_m.
rewrite [LHS]/= (IHm n.+1) //; last by move=> k j j_m; apply/g_off/ltnW.
by apply: g_off => //; apply/imgP => -[i /e_lt] /[swap] ->; rewrite ltnn.
Qed.

End Fold.

Section Insertion.
Variable A : arith.
Implicit Types (f g x y : vec A) (e : nat -> nat).

Lemma osum_insert n m e f g :
  emb n m e -> padded n m e f g -> osum m g = osum n f.
Proof.
move=> eP [g_at g_off]; apply: (@fold_insert A (@add A) zero n m e f g) => // k j.
by move=> j_m /(g_off _ j_m)->; apply: addx0.
Qed.

(** MAIN 2 zero_insertion: An ordered sum of products is unchanged when
    positions are inserted at which either factor is zero. *)
Theorem zero_insertion n m e x y x' y' : emb n m e ->
  agree n e x x' -> agree n e y y' ->
  (forall j, j < m -> ~~ img n e j -> x' j = zero \/ y' j = zero) ->
  dot m x' y' = dot n x y.
Proof.
move=> eP xx yy xy_off; apply: osum_insert (eP) _; split=> [i i_n|j j_m j_off].
  by rewrite xx // yy.
by case: (xy_off j j_m j_off) => ->; rewrite (mul0x, mulx0).
Qed.

End Insertion.
