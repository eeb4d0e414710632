From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Dealt RmsNorm LayerNorm Scale.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.

(******************************************************************************)
(* Norms of q and k. Their eps is that of the residual's norms, which grows   *)
(* with the residual; so what they read is scaled instead, by s.              *)
(*                                                                            *)
(*    centre_qk K lose p == p where each head of K lanes of q and of k loses  *)
(*             its mean, if lose: rows of weights, and biases.                *)
(******************************************************************************)

Local Open Scope ring_scope.

Section Copied.
Variables (R : rcfType) (m K : nat).

Lemma rsum_add n n' (x : nat -> R) :
  rsum (n + n') x = rsum n x + rsum n' (fun i => x (n + i)%N).
Proof.
elim: n' => [|n' IHn]; first by rewrite addn0 [rsum 0 _]/= addr0.
by rewrite addnS {1}/rsum /= -/(rsum _ _) IHn -addrA.
Qed.

Lemma rsum_blocks n n' (x : nat -> R) :
  rsum (n * n') x = rsum n (fun g => rsum n' (fun k => x (g * n' + k)%N)).
Proof.
elim: n => [|n IHn] //; rewrite mulSn addnC rsum_add IHn.
by rewrite [in RHS]/rsum /= -/(rsum _ _).
Qed.

(** Repeated blocks leave the mean of squares. *)
Lemma meansq_copied G (x : nat -> R) : (0 < m)%N ->
  meansq (G * m * K) (copied m K x) = meansq (G * K) x.
Proof.
move=> m_gt0; pose S g := rsum K (fun k => x (g * K + k)%N ^+ 2).
have blocks n (y : nat -> R) : meansq (n * K) y
    = rsum n (fun g => rsum K (fun k => y (g * K + k)%N ^+ 2)) / (n * K)%:R.
  by rewrite /meansq rsum_blocks.
rewrite !blocks (@eq_rsum _ _ _ (fun g => S (g %/ m)%N)) => [|g _]; last first.
  by apply: eq_rsum => k k_lt; rewrite copied_at.
rewrite rsum_blocks (@eq_rsum _ G _ (fun g => S g * m%:R)) => [|g _]; last first.
  rewrite -rsum_const; apply: eq_rsum => k k_lt.
  by rewrite divnMDl // divn_small ?addn0.
rewrite rsumZ mulnAC natrM -mulf_div divff ?mulr1 //.
by rewrite pnatr_eq0 -lt0n.
Qed.

End Copied.

(** A map of an axis into one of its size stays where it is. *)
Lemma emb_full n e i : emb n n e -> (i < n)%N -> e i = i.
Proof.
move=> eP i_lt; apply/eqP; rewrite eqn_leq (emb_ge eP i_lt) andbT.
have [e_lt e_incr] := eP.
suff le k j : (j + k.+1)%N = n -> (e j <= j)%N.
  by apply: (le (n - i.+1)%N); rewrite addnS -addSn subnKC.
elim: k j => [|k IHk] j jE; first by rewrite -ltnS -[j.+1]addn1 jE e_lt // -jE addn1.
rewrite -ltnS; apply: (leq_trans _ (IHk j.+1 _)); last by rewrite addSnnS.
by apply: e_incr => //; rewrite -jE -addSnnS -[X in (X < _)%N]addn0 ltn_add2l.
Qed.

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

(** A LayerNorm without a bias does so too, where its input has no mean or it gets no
    new lanes. *)
Lemma layernorm_scaled_input a (w w' x x' : nat -> R) : mean n x = 0 \/ n' = n ->
  (forall i, (i < n)%N -> w' (e i) = w i * a) -> rpadded n n' e (fun i => s * x i) x' ->
  rpadded n n' e (fun i => a / Num.sqrt r * ln n eps w (fun=> 0) x i)
    (ln n' (eps * (s ^+ 2 * r)) w' (fun=> 0) x').
Proof.
move=> x0 ww xP; have sE : mean n (fun i => s * x i) = mean n x * s.
  by rewrite -(meanZ n x s) /mean (@eq_rsum _ n _ (fun i => x i * s)) // => i _; apply: mulrC.
have cP : rpadded n n' e (fun i => s * centre n x i) (centre n' x').
  rewrite /centre (mean_padded n_gt0 eP xP) sE; case: x0 => [->|n'E].
    rewrite mul0r mulr0; split=> [i i_lt|j j_lt j_off]; first by rewrite !subr0 xP.1.
    by rewrite subr0 xP.2.
  rewrite /r n'E divff ?mul1r ?pnatr_eq0 -?lt0n //.
  split=> [i i_lt|j]; first by rewrite xP.1 // mulrBr [mean _ _ * _]mulrC.
  by move=> j_lt /imgP[]; exists j; rewrite // (emb_full _ j_lt) // -{2}n'E.
have [old new] := rmsnorm_scaled_input ww cP.
by split=> [i i_lt|j j_lt j_off]; rewrite /ln addr0 ?old ?new // addr0.
Qed.

End Rms.

Section QkNorm.
Variables (R : rcfType) (d d' : dims) (ed e : nat -> nat) (m s : nat).
Variables (eps eps' sq sk a : R).
Let A := ring_arith R.
Hypotheses (grp_le : (grp d * m <= grp d')%N) (rep_le : (rep d <= m * s)%N).
Hypotheses (s_le : (s <= rep d')%N) (K_gt0 : (0 < lane d)%N).
Hypotheses (edP : emb (hid d) (hid d') ed) (eP : emb (lane d) (lane d') e).
Hypotheses (sq_gt0 : 0 < sq) (sk_gt0 : 0 < sk).
Variables (p p' : attn A).

Let hm := dealmap (rep d) (rep d') m s.
Let hmP : emb (hds d) (hds d') hm := (dealt_map grp_le rep_le s_le).1.
Let times (z : R) : A -> A := *%R z.
Let timesP z : homothety (times z).
Proof. by split=> x y; [apply: mulrDr | apply: mulrA]. Qed.
Let c : A -> A := *%R a.
Let g_emb := emb_id grp_le.

Let qm := prodmap (lane d) (lane d') hm e.
Let kvm := kvmap (lane d) (lane d') e.
Hypothesis pP : attn_dealt d d' ed e m s (times sq) (times sk) p p'.
Let root m n : R := Num.sqrt (m%:R / n%:R).

Lemma rootK k n : (0 < k)%N -> (0 < n)%N -> root k n / root k n = 1.
Proof. by move=> k_gt0 n_gt0; rewrite divff // gt_eqF // sqrtr_gt0 divr_gt0 ?ltr0n. Qed.

Lemma rootMK b k n : (0 < k)%N -> (0 < n)%N -> b * root k n / root k n = b.
Proof. by move=> k_gt0 n_gt0; rewrite -mulrA rootK ?mulr1. Qed.

Let K'_gt0 : (0 < lane d')%N := leq_trans K_gt0 (emb_leq eP).

(* Whatever norms the heads have, if they grow what heads may hold. *)
Lemma heads_normed (Q : vec A -> Prop) (nq nq' nk nk' : nat -> vec A -> vec A) :
  (forall h x, Q (head d h (query d id p x)) /\ Q (head d h (key d id p x))) ->
  (forall h x x', (h < hds d)%N -> Q x ->
    rpadded (lane d) (lane d') e (fun i => sq * x i) x' ->
    rpadded (lane d) (lane d') e (fun i => a * nq h x i) (nq' (hm h) x')) ->
  (forall g x x', (g < grp d * m)%N -> Q x ->
    rpadded (lane d) (lane d') e (fun i => sk * x i) x' ->
    rpadded (lane d) (lane d') e (nk (g %/ m)%N x) (nk' g x')) ->
  attn_grown (A := A) d d' ed hm e c (by_head (A := A) (lane d) nq)
    (by_head (A := A) (lane d') nq') (by_head (A := A) (lane d) nk)
    (by_head (A := A) (lane d') nk') p p'.
Proof.
move=> QP nqP nkP; apply: (normed_grown grp_le rep_le s_le edP eP (timesP sq) (timesP sk) pP) =>
  [x q' q qP h h_lt|x k' k kP h h_lt].
  have [old new] := nqP _ _ _ h_lt (QP h x).1 (head_padded eP hmP h_lt qP).
  split=> [i i_lt|i i_lt i_off]; rewrite /head by_head_at ?(eP.1) //; last exact: new.
  by rewrite old // by_head_at.
have [g_lt gE] := (dealt_map grp_le rep_le s_le).2 h h_lt.
have kP0 : rpadded (lane d) (lane d') e (fun i => sk * head d (h %/ rep d) k i)
    (head d' (hm h %/ rep d') k').
  have [kE k0] := head_padded eP g_emb g_lt kP; split=> // i i_lt.
  by rewrite [LHS]kE // /head copied_at // gE.
have [old _] := nkP _ _ _ g_lt (QP _ x).2 kP0.
by move=> i i_lt; rewrite /head !by_head_at ?(eP.1) // [LHS]old // gE.
Qed.

(** MAIN 4 qk_norm_of_heads: RMSNorms of q and k over the lanes of each head, of one
    weight or of one for each, whose eps becomes s^2 K/K' times itself: with q and k
    times s, the weight of q's norm times a sqrt(K/K') for any a and that of k's times
    sqrt(K/K'), the heads of q are grown by the factor a (sqrt(K'/K), where scores are
    over sqrt(K)) and those of k, repeated or not, as they are, which is what the
    attention theorems ask for. *)
Theorem qk_norm_of_heads (wq wq' wk wk' : nat -> nat -> R) : sq = sk ->
  eps' = eps * (sq ^+ 2 * ((lane d)%:R / (lane d')%:R)) ->
  (forall h k, (h < hds d)%N -> (k < lane d)%N ->
    wq' (hm h) (e k) = wq h k * (a * root (lane d) (lane d'))) ->
  (forall g k, (g < grp d * m)%N -> (k < lane d)%N ->
    wk' g (e k) = wk (g %/ m)%N k * root (lane d) (lane d')) ->
  attn_grown (A := A) d d' ed hm e c
    (by_head (A := A) (lane d) (fun h => rms (lane d) eps (wq h)))
    (by_head (A := A) (lane d') (fun h => rms (lane d') eps' (wq' h)))
    (by_head (A := A) (lane d) (fun g => rms (lane d) eps (wk g)))
    (by_head (A := A) (lane d') (fun g => rms (lane d') eps' (wk' g))) p p'.
Proof.
move=> sE -> wqP wkP.
have scaled_input := @rmsnorm_scaled_input R _ _ e eps sq K_gt0 eP sq_gt0.
apply: (heads_normed (Q := fun=> True)) => // [h x x' h_lt _ xP|g x x' g_lt _].
  have [old new] := scaled_input _ _ _ _ _ (wqP h ^~ h_lt) xP.
  by split=> // i i_lt; rewrite old // rootMK.
rewrite -sE => xP.
have [old new] := scaled_input _ _ _ _ _ (wkP g ^~ g_lt) xP.
by split=> // i i_lt; rewrite old // rootK // mul1r.
Qed.

(** MAIN 4 qk_norm_whole: RMSNorms of q and k over all heads together, whose eps becomes
    s^2 n/n' times itself for each of them (of n lanes, copies of heads among them, n'
    when grown, read times s): with the weight of q's norm times a sqrt(n/n') for any a
    and that of k's times sqrt(n/n'), the heads of q are grown by the factor a
    (sqrt(K'/K), where scores are over sqrt(K)) and those of k as they are. *)
Theorem qk_norm_whole (wq wq' wk wk' : nat -> R) (kvs := (grp d * m * lane d)%N) :
  (0 < hds d)%N ->
  eps' = eps * (sq ^+ 2 * ((qry d)%:R / (qry d')%:R)) ->
  eps' = eps * (sk ^+ 2 * (kvs%:R / (kv d')%:R)) ->
  (forall i, (i < qry d)%N -> wq' (qm i) = wq i * (a * root (qry d) (qry d'))) ->
  (forall i, (i < kvs)%N -> wk' (kvm i) = copied m (lane d) wk i * root kvs (kv d')) ->
  attn_grown (A := A) d d' ed hm e c (rms (qry d) eps wq) (rms (qry d') eps' wq')
    (rms (kv d) eps wk) (rms (kv d') eps' wk') p p'.
Proof.
move=> H_gt0 qE kE wqP wkP; have H'_gt0 : (0 < hds d')%N := leq_trans H_gt0 (emb_leq hmP).
have /andP[G_gt0 R_gt0] : (0 < grp d)%N && (0 < rep d)%N by rewrite -muln_gt0.
have m_gt0 : (0 < m)%N by move: (leq_trans R_gt0 rep_le); rewrite muln_gt0 => /andP[].
have Gm_gt0 : (0 < grp d * m)%N by rewrite muln_gt0 G_gt0.
apply: (normed_grown grp_le rep_le s_le edP eP (timesP sq) (timesP sk) pP) =>
  [x q' q qP h h_lt|x k' k kP h h_lt].
  have qmP := prodmap_emb hmP eP; have n_gt0 : (0 < qry d)%N by rewrite muln_gt0 H_gt0.
  have [old new] := head_padded eP hmP h_lt
    (@rmsnorm_scaled_input R _ _ _ eps sq n_gt0 qmP sq_gt0 _ _ _ _ _ wqP qP).
  have n'_gt0 : (0 < qry d')%N by rewrite muln_gt0 H'_gt0.
  by rewrite qE; split=> [i i_lt|//]; rewrite old // rootMK.
have kvmP := prodmap_emb g_emb eP; have n_gt0 : (0 < kvs)%N by rewrite muln_gt0 Gm_gt0.
have n'_gt0 : (0 < kv d')%N by rewrite muln_gt0 (leq_trans Gm_gt0 grp_le).
have [g_lt gE] := (dealt_map grp_le rep_le s_le).2 h h_lt.
have [old _] := head_padded eP g_emb g_lt
  (@rmsnorm_scaled_input R _ _ _ eps sk n_gt0 kvmP sk_gt0 _ _ _ _ _ wkP kP).
move=> i i_lt; rewrite kE [LHS]old // /head rootK // mul1r /rms !copied_at // gE.
by rewrite meansq_copied.
Qed.

End QkNorm.

Section LayerNorms.
Variables (R : rcfType) (d d' : dims) (ed e : nat -> nat) (m s : nat).
Variables (eps eps' z a : R).
Let A := ring_arith R.
Let K := lane d. Let K' := lane d'.
Hypotheses (grp_le : (grp d * m <= grp d')%N) (rep_le : (rep d <= m * s)%N).
Hypotheses (s_le : (s <= rep d')%N) (K_gt0 : (0 < K)%N) (z_gt0 : 0 < z).
Hypotheses (edP : emb (hid d) (hid d') ed) (eP : emb K K' e).
Let hm := dealmap (rep d) (rep d') m s.
Let root m n : R := Num.sqrt (m%:R / n%:R).

Definition centre_rows (b : bool) (W : mat A) : mat A := fun o i =>
  if b then by_head (A := A) K (fun=> centre K) (W ^~ i) o else W o i.
Definition centre_bias (b : bool) (v : vec A) : vec A :=
  if b then by_head (A := A) K (fun=> centre K) v else v.
Definition centre_qk b (p : attn A) : attn A := Attn
  (centre_rows b (wq p)) (centre_bias b (bq p)) (centre_rows b (wk p))
  (centre_bias b (bk p)) (wv p) (bv p) (wo p) (bo p).

Lemma centred_head n W v (x : vec A) h k : (k < K)%N ->
  affine n (centre_rows true W) (centre_bias true v) x (h * K + k)
  = centre K (head d h (affine n W v x)) k.
Proof.
move=> k_lt; rewrite -[RHS](centred_writer K n (fun k => W (h * K + k)%N)).
rewrite /affine /centre_bias by_head_at //; congr (_ + _).
by apply: (@eq_osum A) => i _; rewrite /centre_rows by_head_at.
Qed.

(** MAIN 4 qk_layernorm_of_heads: LayerNorms of q and k over the lanes of each head, of
    one weight for each and without a bias, grow as RMSNorms do, if the rows of q and of
    k, and their biases, lose the mean of their head first, or if head_dim stays. *)
Theorem qk_layernorm_of_heads (b : bool) (p p' : attn A) (wq wq' wk wk' : nat -> nat -> R) :
  b \/ K' = K ->
  attn_dealt (A := A) d d' ed e m s ( *%R z) ( *%R z) (centre_qk b p) p' ->
  eps' = eps * (z ^+ 2 * (K%:R / K'%:R)) ->
  (forall h k, (h < hds d)%N -> (k < K)%N ->
    wq' (hm h) (e k) = wq h k * (a * root K K')) ->
  (forall g k, (g < grp d * m)%N -> (k < K)%N ->
    wk' g (e k) = wk (g %/ m)%N k * root K K') ->
  attn_grown (A := A) d d' ed hm e ( *%R a)
    (by_head (A := A) K (fun h => ln K eps (wq h) (fun=> 0)))
    (by_head (A := A) K' (fun h => ln K' eps' (wq' h) (fun=> 0)))
    (by_head (A := A) K (fun g => ln K eps (wk g) (fun=> 0)))
    (by_head (A := A) K' (fun g => ln K' eps' (wk' g) (fun=> 0))) p p'.
Proof.
move=> bP pP -> wqP wkP; have K'_gt0 : (0 < K')%N := leq_trans K_gt0 (emb_leq eP).
have scaled_input := @layernorm_scaled_input R _ _ e eps z K_gt0 eP z_gt0.
pose Q (x : nat -> R) := mean K x = 0 \/ K' = K.
have QP n W v (x : vec A) h :
    Q (head d h (affine n (centre_rows b W) (centre_bias b v) x)).
  case: bP => [->|K'E]; [left|by right].
  rewrite -[RHS](mean_centre K_gt0 (head d h (affine n W v x))).
  by congr (_ / _); apply: eq_rsum => k; apply: centred_head.
have same n W v (w : nat -> nat -> R) (x : vec A) h k : (k < K)%N ->
    by_head (A := A) K (fun h => ln K eps (w h) (fun=> 0)) (affine n (centre_rows b W)
      (centre_bias b v) x) (h * K + k)
    = by_head (A := A) K (fun h => ln K eps (w h) (fun=> 0)) (affine n W v x) (h * K + k).
  move=> k_lt; case: b {bP pP QP} => //; rewrite !by_head_at //.
  rewrite -[RHS](centring_behind_layernorm K_gt0) //.
  by apply: eq_ln => // j j_lt; apply: centred_head.
suff [qP kP vP oP rowP biasP newP] : attn_grown (A := A) d d' ed hm e ( *%R a)
    (by_head (A := A) K (fun h => ln K eps (wq h) (fun=> 0)))
    (by_head (A := A) K' (fun h => ln K' (eps * (z ^+ 2 * (K%:R / K'%:R))) (wq' h) (fun=> 0)))
    (by_head (A := A) K (fun g => ln K eps (wk g) (fun=> 0)))
    (by_head (A := A) K' (fun g => ln K' (eps * (z ^+ 2 * (K%:R / K'%:R))) (wk' g) (fun=> 0)))
    (centre_qk b p) p'.
  split=> // x x' xP h h_lt; last first.
    by move=> k k_lt; rewrite [LHS](kP _ _ xP h h_lt k k_lt) /head [LHS]same.
  have [old new] := qP _ _ xP h h_lt; split=> // k k_lt.
  by rewrite old // /head [X in _ * X]same.
apply: (heads_normed grp_le rep_le s_le edP eP pP (Q := Q)).
- by move=> h x; split; apply: QP.
- move=> h x x' h_lt Qx xP; have [old new] := scaled_input _ _ _ _ _ Qx (wqP h ^~ h_lt) xP.
  by split=> // i i_lt; rewrite old // rootMK.
move=> g x x' g_lt Qx xP; have [old new] := scaled_input _ _ _ _ _ Qx (wkP g ^~ g_lt) xP.
by split=> // i i_lt; rewrite old // rootK // mul1r.
Qed.

End LayerNorms.
