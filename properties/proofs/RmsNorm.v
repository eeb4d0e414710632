From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith Insertion.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(******************************************************************************)
(*      ring_arith R == a ring is an arith.                                   *)
(*          rsum n x == x 0 + ... + x n.-1 in a ring.                         *)
(*       meansq D x == the mean of the squares of D lanes.                    *)
(*    rms D eps w x == RMSNorm: w i (x i / sqrt (meansq D x + eps)).          *)
(******************************************************************************)

Canonical ring_arith (R : ringType) :=
  Arith (@addr0 R) (@add0r R) (@mul0r R) (@mulr0 R).
Definition rsum (R : ringType) n (x : nat -> R) : R := @osum (ring_arith R) n x.
Definition rpadded (R : ringType) n m e (x x' : nat -> R) :=
  @padded (ring_arith R) n m e x x'.

Lemma rsum_insert (R : ringType) n m e (x x' : nat -> R) :
  emb n m e -> rpadded n m e x x' -> rsum m x' = rsum n x.
Proof. by move=> eP; apply: osum_insert. Qed.

Lemma rsumD (R : ringType) n (x y : nat -> R) :
  rsum n (fun i => x i + y i) = rsum n x + rsum n y.
Proof. by elim: n => [|n IHn] /=; rewrite /rsum /= ?addr0 // [osum n _]IHn addrACA. Qed.

Lemma rsumZ (R : comRingType) n a (x : nat -> R) :
  rsum n (fun i => x i * a) = rsum n x * a.
Proof. by elim: n => [|n IHn]; rewrite /rsum /= ?mul0r // [osum n _]IHn mulrDl. Qed.

Lemma rsum_const (R : ringType) n (a : R) : rsum n (fun=> a) = a * n%:R.
Proof.
elim: n => [|n IHn]; rewrite /rsum /= ?mulr0 // [osum n _]IHn.
by rewrite mulrS mulrDr mulr1 addrC.
Qed.

Lemma eq_rsum (R : ringType) n (x y : nat -> R) :
  (forall i, (i < n)%N -> x i = y i) -> rsum n x = rsum n y.
Proof. exact: (@eq_osum (ring_arith R)). Qed.

Lemma rsum_ge0 (R : numDomainType) n (x : nat -> R) :
  (forall i, 0 <= x i) -> 0 <= rsum n x.
Proof. by move=> x_ge0; elim: n => [|n IHn]; rewrite /rsum /= ?addr_ge0. Qed.

Lemma rsum_ge (R : numDomainType) n (x : nat -> R) i :
  (forall i, 0 <= x i) -> (i < n)%N -> x i <= rsum n x.
Proof.
move=> x_ge0; elim: n => // n IHn; rewrite ltnS leq_eqVlt => /orP[/eqP->|/IHn i_n].
  by rewrite /rsum /= ler_addr rsum_ge0.
by rewrite /rsum /= (le_trans i_n) // ler_addl.
Qed.

Section RmsNorm.
Variable R : rcfType.
Implicit Types (w x : nat -> R) (eps : R).

Definition meansq D x := rsum D (fun i => x i ^+ 2) / D%:R.
Definition rms D eps w x i := w i * (x i / Num.sqrt (meansq D x + eps)).

Lemma meansq_ge0 D x : 0 <= meansq D x.
Proof. by rewrite divr_ge0 ?ler0n ?rsum_ge0 // => i; apply: sqr_ge0. Qed.

Lemma meansq_ge D x i : (i < D)%N -> x i ^+ 2 / D%:R <= meansq D x.
Proof.
move=> i_lt; rewrite ler_wpmul2r ?invr_ge0 ?ler0n //.
by apply: rsum_ge i_lt => j; apply: sqr_ge0.
Qed.

Variables (D D' : nat) (e : nat -> nat).
Hypotheses (D_gt0 : (0 < D)%N) (eP : emb D D' e).
Let r : R := D%:R / D'%:R.

Let D_neq0 : D%:R != 0 :> R. Proof. by rewrite pnatr_eq0 -lt0n. Qed.
Let D'_gt0 : (0 < D')%N. Proof. exact: leq_trans D_gt0 (emb_leq eP). Qed.
Let D'_neq0 : D'%:R != 0 :> R. Proof. by rewrite pnatr_eq0 -lt0n. Qed.
Let r_gt0 : 0 < r. Proof. by rewrite divr_gt0 ?ltr0n. Qed.
Let q_neq0 : Num.sqrt r != 0. Proof. by rewrite sqrtr_eq0 -ltNge. Qed.

Lemma meansq_padded x x' : rpadded D D' e x x' -> meansq D' x' = r * meansq D x.
Proof.
move=> [xx x_off]; rewrite /meansq (@rsum_insert _ D D' e (fun i => x i ^+ 2)) //.
  by rewrite /r [RHS]mulrC mulrA mulfVK.
by split=> [i i_lt|j j_lt j_off]; rewrite (xx, x_off) // expr0n.
Qed.

(** MAIN 6 rmsnorm_scaled: RMSNorm commutes with padding from D to D' lanes
    exactly, if its weight is multiplied by sqrt(D/D') and its eps by D/D'; its
    new weights are free. *)
Theorem rmsnorm_scaled eps w w' x x' :
  (forall i, (i < D)%N -> w' (e i) = w i * Num.sqrt r) -> rpadded D D' e x x' ->
  rpadded D D' e (rms D eps w x) (rms D' (eps * r) w' x').
Proof.
move=> ww xP; rewrite /rms (meansq_padded xP) [eps * r]mulrC -mulrDr.
split=> [i i_lt|j j_lt j_off]; last by rewrite xP.2 //= mul0r mulr0.
rewrite xP.1 // ww // sqrtrM ?ltW // invfM.
by rewrite [x i * _]mulrCA -mulrA mulVKf.
Qed.

(** MAIN 6 rmsnorm_scaled_stream: The alternative that keeps eps: multiply the
    writers, and with them the residual, by sqrt(D'/D) and the weight by
    sqrt(D/D'). *)
Theorem rmsnorm_scaled_stream eps w w' x x' :
  (forall i, (i < D)%N -> w' (e i) = w i * Num.sqrt r) ->
  rpadded D D' e (fun i => x i / Num.sqrt r) x' ->
  rpadded D D' e (rms D eps w x) (rms D' eps w' x').
Proof.
move=> ww xP; rewrite /rms (meansq_padded xP).
have -> : r * meansq D (fun i => x i / Num.sqrt r) = meansq D x.
  rewrite /meansq (@eq_rsum _ D _ (fun i => x i ^+ 2 * r^-1)) => [|i i_lt].
    by rewrite rsumZ mulrA [r * _]mulrC mulfVK ?gt_eqF.
  by rewrite exprMn exprVn sqr_sqrtr // ltW.
split=> [i i_lt|j j_lt j_off]; last by rewrite xP.2 //= mul0r mulr0.
by rewrite xP.1 // ww // -[x i / _ / _]mulrA mulrCA -mulrA [in RHS]mulrCA mulVKf //
  mulrCA.
Qed.

(** MAIN 6 rmsnorm_eps_needed: If D' > D and eps > 0 is kept while the weight is
    scaled, RMSNorm is wrong in every lane of every input where weight and input
    are not zero. *)
Theorem rmsnorm_eps_needed eps w w' x x' i : (D < D')%N -> 0 < eps ->
  (forall i, (i < D)%N -> w' (e i) = w i * Num.sqrt r) -> rpadded D D' e x x' ->
  (i < D)%N -> w i != 0 -> x i != 0 -> rms D' eps w' x' (e i) != rms D eps w x i.
Proof.
move=> D_lt eps_gt0 ww xP i_lt w_neq0 x_neq0.
have M_ge0 := meansq_ge0 D x; have s_gt0 : 0 < meansq D x + eps by rewrite ltr_paddl.
have s'_gt0 : 0 < r * meansq D x + eps by rewrite ltr_paddl // mulr_ge0 // ltW.
rewrite /rms (meansq_padded xP) xP.1 // ww // -mulrA.
rewrite (inj_eq (mulfI w_neq0)) [_ * (x i / _)]mulrCA (inj_eq (mulfI x_neq0)).
apply/eqP => E.
have: Num.sqrt (r * (meansq D x + eps)) = Num.sqrt (r * meansq D x + eps).
  have s_neq0 : Num.sqrt (meansq D x + eps) != 0 by rewrite gt_eqF ?sqrtr_gt0.
  have s'_neq0 : Num.sqrt (r * meansq D x + eps) != 0 by rewrite gt_eqF ?sqrtr_gt0.
  by rewrite sqrtrM ?ltW // (canRL (mulfVK s'_neq0) E) mulrAC mulVf // mul1r.
move/(congr1 (fun z => z ^+ 2)).
rewrite (sqr_sqrtr (ltW s'_gt0)) (sqr_sqrtr (ltW (mulr_gt0 r_gt0 s_gt0))) mulrDr.
rewrite -[X in _ = _ + X]mul1r => /addrI/(mulIf (lt0r_neq0 eps_gt0)) r1; move: D_lt.
by rewrite -(@ltr_nat R) -[X in X < _](mulfVK D'_neq0) -/r r1 mul1r ltxx.
Qed.

(** MAIN 11 unscaled_norm: Without its factor sqrt(D/D') the norm weight
    multiplies every output by sqrt(D'/D), so that any lane that is not zero is
    wrong once D' > D. *)
Theorem unscaled_norm eps w w' x x' i :
  (forall i, (i < D)%N -> w' (e i) = w i) -> rpadded D D' e x x' -> (i < D)%N ->
  rms D' (eps * r) w' x' (e i) = rms D eps w x i / Num.sqrt r
  /\ ((D < D')%N -> rms D eps w x i != 0 ->
      rms D' (eps * r) w' x' (e i) != rms D eps w x i).
Proof.
move=> ww xP i_lt; have E : rms D' (eps * r) w' x' (e i) = rms D eps w x i / Num.sqrt r.
  rewrite /rms (meansq_padded xP) [eps * r]mulrC -mulrDr sqrtrM ?ltW // invfM.
  by rewrite ww // xP.1 // !mulrA [_ / _ / Num.sqrt r]mulrAC.
split=> // D_lt y_neq0; rewrite E -subr_eq0 -{2}[rms _ _ _ _ _]mulr1 -mulrBr.
rewrite mulf_neq0 // subr_eq0 invr_eq1; apply/eqP => q1.
have := sqr_sqrtr (ltW r_gt0); rewrite q1 expr1n => r1; move: D_lt.
by rewrite -(@ltr_nat R) -[X in X < _](mulfVK D'_neq0) -/r -r1 mul1r ltxx.
Qed.

End RmsNorm.
