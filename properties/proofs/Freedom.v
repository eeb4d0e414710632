From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Linear Rotary Attention Mlp Decoder.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*  mix keep W Z == the entries of W that are kept, those of Z elsewhere.     *)
(*  attn_refilled p' z == p' with every entry that is free taken from z:      *)
(*    q    rows of new heads, and columns on new residual lanes (old heads    *)
(*         keep zeros in their new lanes)                                     *)
(*    k, v rows of new groups and of new lanes, columns on new residual lanes *)
(*    o    nothing: it writes                                                 *)
(*    the biases of q, k and v where the rows are free, o's nowhere           *)
(*  mlp_refilled p' z == the same: rows of new units and columns on new lanes *)
(*         of gate and up, nothing of down.                                   *)
(******************************************************************************)

Definition mix (A : arith) (keep : nat -> nat -> bool) (W Z : mat A) : mat A :=
  fun o i => if keep o i then W o i else Z o i.
Definition mixv (A : arith) (keep : nat -> bool) (b z : vec A) : vec A :=
  fun o => if keep o then b o else z o.

Section Attention.
Variables (A : arith) (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A).
Variables (T : nat) (d d' : dims) (ed e : nat -> nat).
Variables (rot rot' : nat -> vec A -> vec A) (scale scale' c : A -> A).
Hypotheses (grp_le : grp d <= grp d') (rep_le : rep d <= rep d').
Hypotheses (edP : emb (hid d) (hid d') ed) (eP : emb (lane d) (lane d') e).
Hypotheses (rotP : forall t, respects (lane d) (lane d') e (rot t) (rot' t)).
Hypotheses (cP : homothety c) (scaleP : forall s, scale' (c s) = scale s).
Hypothesis rot_c : forall t u k, rot t (fun k => c (u k)) k = c (rot t u k).

Let hm := headmap (rep d) (rep d').
Let old_head o := img (hds d) hm (o %/ lane d').
Let old_kv o := img (kv d) (kvmap (lane d) (lane d') e) o.
Let old_hid i := img (hid d) ed i.
Let q_kept o i := old_head o && old_hid i.
Let kv_kept o i := old_kv o && old_hid i.

Definition attn_refilled (p' z : attn A) := Attn
  (mix q_kept (wq p') (wq z)) (mixv old_head (bq p') (bq z))
  (mix kv_kept (wk p') (wk z)) (mixv old_kv (bk p') (bk z))
  (mix kv_kept (wv p') (wv z)) (mixv old_kv (bv p') (bv z)) (wo p') (bo p').

Lemma old_head_at h k : h < hds d -> k < lane d' ->
  old_head (hm h * lane d' + k).
Proof.
move=> h_lt k_lt; have K_gt0 := leq_ltn_trans (leq0n _) k_lt.
by rewrite /old_head divnMDl // divn_small // addn0 img_at.
Qed.

Lemma refilled_free p p' z : attn_scattered d d' ed e c p p' ->
  attn_free d d' ed hm e c p (attn_refilled p' z).
Proof.
move=> pP; have F := scattered_free grp_le rep_le edP eP pP;
  have hidI i : i < hid d -> old_hid (ed i).
  exact: img_at.
have qI a : a < qry d -> old_head (prodmap (lane d) (lane d') hm e a).
  move=> a_lt; have k_lt := modn_lt a_lt; have h_lt := divn_lt a_lt.
  by rewrite /prodmap old_head_at ?(eP.1).
have kvI h k : h < hds d -> k < lane d -> old_kv (hm h %/ rep d' * lane d' + e k).
  move=> h_lt k_lt; rewrite (group_hm rep_le) // -(kvmapE _ e _ k_lt).
  by rewrite /old_kv img_at ?flat_lt ?divn_lt.
split; rewrite /= /agree2 /agree /zero_row /mix /mixv /q_kept /kv_kept.
- by move=> o i o_lt i_lt; rewrite qI ?hidI //; apply: (q_old F).
- by move=> o o_lt; rewrite qI //; apply: (bq_old F).
- move=> h k h_lt k_lt k_off; have [W0 b0] := q_lane F h_lt k_lt k_off.
  by split=> [i i_lt|]; rewrite old_head_at ?hidI ?b0 // W0.
- move=> h k h_lt k_lt; have [W b] := k_old F h_lt k_lt.
  by split=> [i i_lt|]; rewrite kvI ?hidI // W.
- move=> h k h_lt k_lt; have [W b] := v_old F h_lt k_lt.
  by split=> [i i_lt|]; rewrite kvI ?hidI // W.
- exact: (o_old_ F).
- exact: (o_row_ F).
- exact: (bo_pad_ F).
by move=> a a_lt a_off; left; apply: scattered_col (o_at pP) a_lt a_off.
Qed.

(** MAIN 9 attention_trainable: Whatever values the free entries of q, k and v
    take (rows of new heads and groups, new lanes of k and v, columns on new
    residual lanes), attention still returns the old output, padded. *)
Theorem attention_trainable p p' z x x' : attn_scattered d d' ed e c p p' ->
  (forall t, t < T -> padded (hid d) (hid d') ed (x t) (x' t)) ->
  forall t, t < T ->
  padded (hid d) (hid d') ed (attention softmax mask T d rot scale id id p x t)
    (attention softmax mask T d' rot' scale' id id (attn_refilled p' z) x' t).
Proof.
move=> pP xP; have P := free_grown edP cP (refilled_free z pP).
exact (attention_grown softmax mask edP (headmap_emb grp_le rep_le) eP rotP cP scaleP
  rot_c P xP).
Qed.

End Attention.

Section Mlp.
Variables (A : arith) (gated : bool) (f : A -> A) (D D' F F' : nat) (ed ef : nat -> nat).
Hypotheses (edP : emb D D' ed) (efP : emb F F' ef).

Let kept u i := img F ef u && img D ed i.

Definition mlp_refilled (p' z : mlp_weights A) := MlpWeights
  (mix kept (wg p') (wg z)) (mixv (img F ef) (bg p') (bg z))
  (mix kept (wu p') (wu z)) (mixv (img F ef) (bu p') (bu z)) (wd p') (bd p').

Lemma mlp_refilled_free p p' z : mlp_scattered D D' F F' ed ef p p' ->
  mlp_free gated f D D' F F' ed ef p (mlp_refilled p' z).
Proof.
move=> pP; have E := mlp_scattered_free gated f efP pP.
split; rewrite /= /agree2 /agree /mix /mixv /kept.
- by move=> u i u_lt i_lt; rewrite !img_at //; apply: (gate_old E).
- by move=> u u_lt; rewrite img_at //; apply: (bg_old E).
- by move=> u i u_lt i_lt; rewrite !img_at //; apply: (up_old E).
- by move=> u u_lt; rewrite img_at //; apply: (bu_old E).
- exact: (down_old E).
- exact: (down_row E).
- exact: (bd_pad E).
by move=> u u_lt u_off; apply: Or31; apply: scattered_col (down_at pP) u_lt u_off.
Qed.

(** MAIN 9 mlp_trainable: Whatever values the free entries of gate and up take
    (rows of new units, columns on new residual lanes), the MLP still returns
    the old output, padded. *)
Theorem mlp_trainable p p' z x x' : mlp_scattered D D' F F' ed ef p p' ->
  padded D D' ed x x' ->
  padded D D' ed (mlp gated f D F p x) (mlp gated f D' F' (mlp_refilled p' z) x').
Proof. by move=> pP xP; have := mlp_grown edP efP (mlp_refilled_free z pP) xP. Qed.

End Mlp.

(** MAIN 9 decoder_trainable: Any two growths of a decoder, whatever their free
    entries hold and however many silent layers they add, have the same logits. *)
Theorem decoder_trainable (A : arith) (softmax : seq A -> seq A) T V
    (P P1 : vec A -> Prop) (m m' m1 : model A)
    (ed hm e ef ev ed1 hm1 e1 ef1 ev1 : nat -> nat) (c f c1 f1 : A -> A) :
  model_grown softmax T P V ed hm e ef ev c f m m' ->
  model_grown softmax T P1 V ed1 hm1 e1 ef1 ev1 c1 f1 m m1 ->
  forall tok, (forall t, t < T -> tok t < V) -> forall t v, t < T -> v < V ->
  logits softmax T m' (fun t => ev (tok t)) t (ev v)
  = logits softmax T m1 (fun t => ev1 (tok t)) t (ev1 v).
Proof.
by move=> mP m1P tok tok_lt t v t_lt v_lt;
  rewrite (decoder_logits mP) ?(decoder_logits m1P).
Qed.
