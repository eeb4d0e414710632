From mathcomp Require Import all_ssreflect.
From Growproof Require Import Arith.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Section Insertion.
Variable A : arith.
Implicit Types (f g x y : vec A) (e : nat -> nat).

Lemma osum_insert n m e f g :
  emb n m e -> padded n m e f g -> osum m g = osum n f.
Proof.
elim: m n => [|m IHm] n [e_m e_incr] [g_at g_off].
  by case: n e_m {e_incr g_at g_off} => // n /(_ 0 isT).
case: n => [|n] in e_m e_incr g_at g_off *; first by apply: osum0 => j /g_off->.
have [en_m|en_ne] := eqVneq (e n) m.
  rewrite /= -{2}en_m g_at // (IHm n) //.
    by split=> [i i_n|i j i_j /ltnW/e_incr->//]; rewrite -en_m e_incr.
  split=> [i /ltnW/g_at //|j j_m /imgP j_off]; apply: g_off; first exact: ltnW.
  apply/imgP => -[i]; rewrite ltnS leq_eqVlt => /orP[/eqP->|i_n] eij.
    by rewrite -eij en_m ltnn in j_m.
  by apply: j_off; exists i.
have e_lt i : i < n.+1 -> e i < m.
  move=> i_n; have: e i <= e n.
    by move: i_n; rewrite ltnS leq_eqVlt => /orP[/eqP->|/e_incr/(_ (ltnSn n))/ltnW].
  by move/leq_ltn_trans; apply; rewrite ltn_neqAle en_ne -ltnS e_m.
rewrite [LHS]/= g_off ?addx0 // => [|]; last first.
  by apply/imgP => -[i /e_lt] /[swap] ->; rewrite ltnn.
by apply: IHm; split=> // j j_m; apply: g_off; apply: ltnW.
Qed.

(** MAIN 2 zero_insertion: An ordered sum of products is unchanged when positions
    are inserted at which either factor is zero. *)
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
