From mathcomp Require Import all_ssreflect.
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

Let old_head o := img (hds d) (headmap (rep d) (rep d')) (o %/ lane d').
Let old_kv o := img (kv d) (kvmap (lane d) (lane d') e) o.
Let old_hid i := img (hid d) ed i.
Let q_kept o i := old_head o && old_hid i.
Let kv_kept o i := old_kv o && old_hid i.

Definition attn_refilled (p' z : attn A) := Attn
  (mix q_kept (wq p') (wq z)) (mixv old_head (bq p') (bq z))
  (mix kv_kept (wk p') (wk z)) (mixv old_kv (bk p') (bk z))
  (mix kv_kept (wv p') (wv z)) (mixv old_kv (bv p') (bv z)) (wo p') (bo p').

Lemma old_head_at h k : h < hds d -> k < lane d' ->
  old_head (headmap (rep d) (rep d') h * lane d' + k).
Proof.
move=> h_lt k_lt; have K_gt0 := leq_ltn_trans (leq0n _) k_lt.
by rewrite /old_head divnMDl // divn_small // addn0 img_at.
Qed.

Lemma refilled_free p p' z : attn_scattered d d' ed e c p p' ->
  attn_free d d' ed e c p (attn_refilled p' z).
Proof.
move=> pP; have F := scattered_free grp_le rep_le edP eP pP;
  have hidI i : i < hid d -> old_hid (ed i).
  exact: img_at.
have qI a : a < qry d -> old_head (qmap (rep d) (lane d) (rep d') (lane d') e a).
  move=> a_lt; have k_lt := modn_lt a_lt; have h_lt := divn_lt a_lt.
  by rewrite /qmap /prodmap old_head_at ?(eP.1).
have kvI a : a < kv d -> old_kv (kvmap (lane d) (lane d') e a) by apply: img_at.
split; rewrite /= /agree2 /agree /zero_row /mix /mixv /q_kept /kv_kept.
- by move=> o i o_lt i_lt; rewrite qI ?hidI //; apply: (q_old F).
- by move=> o o_lt; rewrite qI //; apply: (bq_old F).
- move=> h k h_lt k_lt k_off; have [W0 b0] := q_lane F h_lt k_lt k_off.
  by split=> [i i_lt|]; rewrite old_head_at ?hidI ?b0 // W0.
- by move=> o i o_lt i_lt; rewrite kvI ?hidI //; apply: (k_old F).
- by move=> o o_lt; rewrite kvI //; apply: (bk_old F).
- by move=> o i o_lt i_lt; rewrite kvI ?hidI //; apply: (v_old F).
- by move=> o o_lt; rewrite kvI //; apply: (bv_old F).
- exact: (o_old F).
- exact: (o_row F).
- exact: (bo_pad F).
by move=> a a_lt a_off; left; apply: scattered_col (o_at pP) a_lt a_off.
Qed.

(** MAIN 9 attention_trainable: Whatever values the free entries of q, k and v
    take (rows of new heads and groups, new lanes of k and v, columns on new
    residual lanes), attention still returns the old output, padded. *)
Theorem attention_trainable p p' z x x' : attn_scattered d d' ed e c p p' ->
  (forall t, t < T -> padded (hid d) (hid d') ed (x t) (x' t)) ->
  forall t, t < T ->
  padded (hid d) (hid d') ed (attention softmax mask T d rot scale p x t)
    (attention softmax mask T d' rot' scale' (attn_refilled p' z) x' t).
Proof.
move=> pP xP t; exact: (attention_grown softmax mask grp_le rep_le edP eP rotP cP
  scaleP rot_c (refilled_free z pP) xP).
Qed.

End Attention.

Section Mlp.
Variables (A : arith) (f : A -> A) (D D' F F' : nat) (ed ef : nat -> nat).
Hypotheses (edP : emb D D' ed) (efP : emb F F' ef).

Let kept u i := img F ef u && img D ed i.

Definition mlp_refilled (p' z : mlp_weights A) := MlpWeights
  (mix kept (wg p') (wg z)) (mixv (img F ef) (bg p') (bg z))
  (mix kept (wu p') (wu z)) (mixv (img F ef) (bu p') (bu z)) (wd p') (bd p').

Lemma mlp_refilled_free p p' z : mlp_scattered D D' F F' ed ef p p' ->
  mlp_free f D D' F F' ed ef p (mlp_refilled p' z).
Proof.
move=> pP; have E := mlp_scattered_free f efP pP.
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
  padded D D' ed (mlp f D F p x) (mlp f D' F' (mlp_refilled p' z) x').
Proof. by move=> pP xP; have := mlp_grown edP efP (mlp_refilled_free z pP) xP. Qed.

End Mlp.

(** MAIN 9 decoder_trainable: Any two growths of a decoder, whatever their free
    entries hold and however many silent layers they add, have the same logits. *)
Theorem decoder_trainable (A : arith) (softmax : seq A -> seq A)
    (mask : nat -> nat -> A -> A) T V (P P1 : vec A -> Prop) (m m' m1 : model A)
    (ed e ef ev ed1 e1 ef1 ev1 : nat -> nat) (c c1 : A -> A) :
  model_grown softmax mask T P V ed e ef ev c m m' ->
  model_grown softmax mask T P1 V ed1 e1 ef1 ev1 c1 m m1 ->
  forall tok, (forall t, t < T -> tok t < V) -> forall t v, t < T -> v < V ->
  logits softmax mask T m' (fun t => ev (tok t)) t (ev v)
  = logits softmax mask T m1 (fun t => ev1 (tok t)) t (ev1 v).
Proof.
by move=> mP m1P tok tok_lt t v t_lt v_lt;
  rewrite (decoder_logits mP) ?(decoder_logits m1P).
Qed.
