From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import RmsNorm Scale.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.

(******************************************************************************)
(* RMSNorms of q and k. Their eps is that of the residual's norms, which grows*)
(* with the residual; so what they read is scaled instead, by s.              *)
(******************************************************************************)

Section Heads.
Variables (A : arith) (d d' : dims) (hm e : nat -> nat).
Hypotheses (hmP : emb (hds d) (hds d') hm) (eP : emb (lane d) (lane d') e).

(** A padded vector of heads is padded heads. *)
Lemma head_padded n n' h (hn : emb n n' h) (y y' : vec A) g : g < n ->
  padded (n * lane d) (n' * lane d') (prodmap (lane d) (lane d') h e) y y' ->
  padded (lane d) (lane d') e (head d g y) (head d' (h g) y').
Proof.
move=> g_lt [yy y0]; split=> [k k_lt|k k_lt k_off].
  by rewrite /head -(prodmap_at _ h e g k_lt) yy ?flat_lt.
have h_lt := hn.1 g g_lt; apply: y0; first exact: flat_lt.
by rewrite img_prodmap ?negb_and ?k_off ?orbT //; apply: eP.1.
Qed.

Lemma by_head_at K (n : nat -> vec A -> vec A) y h k : k < K ->
  by_head K n y (h * K + k) = n h (fun k => y (h * K + k)) k.
Proof.
move=> k_lt; have K_gt0 := leq_ltn_trans (leq0n _) k_lt.
by rewrite /by_head divnMDl // (divn_small k_lt) addn0 modnMDl modn_small.
Qed.

End Heads.

Local Open Scope ring_scope.

Section Rms.
Variables (R : rcfType) (n n' : nat) (e : nat -> nat) (eps s : R).
Hypotheses (n_gt0 : (0 < n)%N) (eP : emb n n' e) (s_gt0 : 0 < s).
Let r : R := n%:R / n'%:R.

(** MAIN 6 rmsnorm_scaled_input: An RMSNorm whose eps becomes s^2 n/n' times itself
    commutes with padding what it reads from n to n' lanes, times s, up to a factor
    sqrt(n'/n), which its weight may take back or keep. *)
Theorem rmsnorm_scaled_input a (w w' x x' : nat -> R) :
  (forall i, (i < n)%N -> w' (e i) = w i * a) -> rpadded n n' e (fun i => s * x i) x' ->
  rpadded n n' e (fun i => a / Num.sqrt r * rms n eps w x i)
    (rms n' (eps * (s ^+ 2 * r)) w' x').
Proof.
have n'_gt0 : (0 < n')%N := leq_trans n_gt0 (emb_leq eP).
have r_gt0 : 0 < r by rewrite divr_gt0 ?ltr0n.
move=> ww xP; rewrite /rms (meansq_padded n_gt0 eP xP) -/r.
have -> : meansq n (fun i => s * x i) = meansq n x * s ^+ 2.
  rewrite /meansq (@eq_rsum _ n _ (fun i => x i ^+ 2 * s ^+ 2)) => [|i _]; last first.
    by rewrite exprMn mulrC.
  by rewrite rsumZ mulrAC.
have -> : r * (meansq n x * s ^+ 2) + eps * (s ^+ 2 * r)
    = s ^+ 2 * r * (meansq n x + eps).
  by rewrite mulrDr [eps * _]mulrC [meansq n x * _]mulrC mulrA [r * _]mulrC.
have q_gt0 : 0 < Num.sqrt r by rewrite sqrtr_gt0.
split=> [i i_lt|j j_lt j_off]; last by rewrite xP.2 //= mul0r mulr0.
have sr_ge0 : 0 <= s ^+ 2 * r by rewrite mulr_ge0 ?sqr_ge0 // ltW.
rewrite xP.1 // ww // (sqrtrM _ sr_ge0) (sqrtrM _ (sqr_ge0 s)) sqrtr_sqr gtr0_norm //.
rewrite !invfM; set v := (Num.sqrt (_ + _))^-1; set q := (Num.sqrt r)^-1.
rewrite (_ : s * x i * (s^-1 * q * v) = q * (x i * v)); last first.
  by rewrite [s * _]mulrC -!mulrA mulVKf ?gt_eqF // mulrCA.
by rewrite [w i * a]mulrC -!mulrA; congr (a * _); rewrite mulrCA.
Qed.

End Rms.

Section QkNorm.
Variables (R : rcfType) (d d' : dims) (ed e : nat -> nat) (eps eps' sq sk a : R).
Let A := ring_arith R.
Hypotheses (grp_le : (grp d <= grp d')%N) (rep_le : (rep d <= rep d')%N).
Hypotheses (edP : emb (hid d) (hid d') ed) (eP : emb (lane d) (lane d') e).
Hypotheses (K_gt0 : (0 < lane d)%N) (sq_gt0 : 0 < sq) (sk_gt0 : 0 < sk).
Variables (p p' : attn A).

Let hm := headmap (rep d) (rep d').
Let hmP : emb (hds d) (hds d') hm := headmap_emb grp_le rep_le.
Let times (s : R) : A -> A := *%R s.
Let timesP s : homothety (times s).
Proof. by split=> x y; [apply: mulrDr | apply: mulrA]. Qed.
Let c : A -> A := *%R a.
Let g_emb := emb_id grp_le.

Let qm := qmap (rep d) (lane d) (rep d') (lane d') e.
Let kvm := kvmap (lane d) (lane d') e.
Hypothesis pP : attn_scattered d d' ed e (times sq) (times sk) p p'.
Let root m n : R := Num.sqrt (m%:R / n%:R).

Lemma rootK m n : (0 < m)%N -> (0 < n)%N -> root m n / root m n = 1.
Proof. by move=> m_gt0 n_gt0; rewrite divff // gt_eqF // sqrtr_gt0 divr_gt0 ?ltr0n. Qed.

Lemma rootMK b m n : (0 < m)%N -> (0 < n)%N -> b * root m n / root m n = b.
Proof. by move=> m_gt0 n_gt0; rewrite -mulrA rootK ?mulr1. Qed.

Let K'_gt0 : (0 < lane d')%N := leq_trans K_gt0 (emb_leq eP).

(** MAIN 4 qk_norm_of_heads: RMSNorms of q and k over the lanes of each head, of one
    weight or of one for each, whose eps becomes s^2 K/K' times itself: with q and k
    times s, the weight of q's norm times a sqrt(K/K') for any a and that of k's times
    sqrt(K/K'), the heads of q are grown by the factor a (sqrt(K'/K), where scores are
    over sqrt(K)) and those of k as they are, which is what the attention theorems ask
    for. *)
Theorem qk_norm_of_heads (wq wq' wk wk' : nat -> nat -> R) : sq = sk ->
  eps' = eps * (sq ^+ 2 * ((lane d)%:R / (lane d')%:R)) ->
  (forall h k, (h < hds d)%N -> (k < lane d)%N ->
    wq' (hm h) (e k) = wq h k * (a * root (lane d) (lane d'))) ->
  (forall g k, (g < grp d)%N -> (k < lane d)%N ->
    wk' g (e k) = wk g k * root (lane d) (lane d')) ->
  attn_grown (A := A) d d' ed hm e c
    (by_head (A := A) (lane d) (fun h => rms (lane d) eps (wq h)))
    (by_head (A := A) (lane d') (fun h => rms (lane d') eps' (wq' h)))
    (by_head (A := A) (lane d) (fun g => rms (lane d) eps (wk g)))
    (by_head (A := A) (lane d') (fun g => rms (lane d') eps' (wk' g))) p p'.
Proof.
move=> sE -> wqP wkP.
have scaled_input := @rmsnorm_scaled_input R _ _ e eps sq K_gt0 eP sq_gt0.
apply: (normed_grown grp_le rep_le edP eP (timesP sq) (timesP sk) pP) =>
  [q q' qP h h_lt|k k' + h h_lt]; last rewrite -sE => kP.
  have [old new] := scaled_input _ _ _ _ _ (wqP h ^~ h_lt) (head_padded eP hmP h_lt qP).
  split=> [k k_lt|k k_lt k_off]; rewrite /head by_head_at ?(eP.1) //; last exact: new.
  by rewrite old // by_head_at // rootMK.
have g_lt := divn_lt h_lt.
have [old _] := scaled_input _ _ _ _ _ (wkP _ ^~ g_lt) (head_padded eP g_emb g_lt kP).
by move=> i i_lt; rewrite /head group_hm // !by_head_at ?(eP.1) // old // rootK // mul1r.
Qed.

(** MAIN 4 qk_norm_whole: RMSNorms of q and k over all heads together, whose eps becomes
    s^2 n/n' times itself for each of them (of n lanes, n' when grown, read times s):
    with the weight of q's norm times a sqrt(n/n') for any a and that of k's times
    sqrt(n/n'), the heads of q are grown by the factor a (sqrt(K'/K), where scores are
    over sqrt(K)) and those of k as they are. *)
Theorem qk_norm_whole (wq wq' wk wk' : nat -> R) : (0 < hds d)%N ->
  eps' = eps * (sq ^+ 2 * ((qry d)%:R / (qry d')%:R)) ->
  eps' = eps * (sk ^+ 2 * ((kv d)%:R / (kv d')%:R)) ->
  (forall i, (i < qry d)%N -> wq' (qm i) = wq i * (a * root (qry d) (qry d'))) ->
  (forall i, (i < kv d)%N -> wk' (kvm i) = wk i * root (kv d) (kv d')) ->
  attn_grown (A := A) d d' ed hm e c (rms (qry d) eps wq) (rms (qry d') eps' wq')
    (rms (kv d) eps wk) (rms (kv d') eps' wk') p p'.
Proof.
move=> H_gt0 qE kE wqP wkP; have H'_gt0 : (0 < hds d')%N := leq_trans H_gt0 (emb_leq hmP).
have G_gt0 : (0 < grp d)%N by move: H_gt0; rewrite muln_gt0 => /andP[].
have G'_gt0 := leq_trans G_gt0 grp_le.
apply: (normed_grown grp_le rep_le edP eP (timesP sq) (timesP sk) pP) =>
  [q q' qP h h_lt|k k' kP h h_lt].
  have qmP := prodmap_emb hmP eP; have n_gt0 : (0 < qry d)%N by rewrite muln_gt0 H_gt0.
  have [old new] := head_padded eP hmP h_lt
    (@rmsnorm_scaled_input R _ _ _ eps sq n_gt0 qmP sq_gt0 _ _ _ _ _ wqP qP).
  have n'_gt0 : (0 < qry d')%N by rewrite muln_gt0 H'_gt0.
  by rewrite qE; split=> [i i_lt|//]; rewrite old // rootMK.
have kvmP := prodmap_emb g_emb eP; have n_gt0 : (0 < kv d)%N by rewrite muln_gt0 G_gt0.
have [old _] := head_padded eP g_emb (divn_lt h_lt)
  (@rmsnorm_scaled_input R _ _ _ eps sk n_gt0 kvmP sk_gt0 _ _ _ _ _ wkP kP).
by rewrite kE => i i_lt; rewrite group_hm // old // /head rootK ?mul1r // muln_gt0 ?G'_gt0.
Qed.

End QkNorm.
