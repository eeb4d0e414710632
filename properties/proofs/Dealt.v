From mathcomp Require Import all_ssreflect.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(* Key/value heads repeated m times, and the query heads dealt out over them. *)
(*                                                                            *)
(*  dealmap R R' m s == query heads: (g, r) goes to (g m + r / s) R' + r % s: *)
(*           share r / s of its group, its place in the share kept; s heads a *)
(*           share, padded to R'.                                             *)
(*  copied m K K' e W W' == row lane e k of the new group g' is row k of the  *)
(*           old group g' / m.                                                *)
(*  copies m G K e W == the one such W' that is zero elsewhere.               *)
(*  attn_dealt == q and o_proj scattered along dealmap, k and v copied.       *)
(******************************************************************************)

Definition dealmap R R' m s := prodmap R (m * R') id (prodmap s R' id id).

Lemma dealmapE R R' m s g r : r < R ->
  dealmap R R' m s (g * R + r) = (g * m + r %/ s) * R' + r %% s.
Proof. by move=> r_R; rewrite /dealmap prodmap_at // /prodmap mulnDl mulnA addnA. Qed.

Section Maps.
Variables (G G' R R' m s : nat).
Hypotheses (G_le : G * m <= G') (R_le : R <= m * s) (s_le : s <= R').

Lemma share_emb : emb R (m * R') (prodmap s R' id id).
Proof.
have [P_lt P_incr] := prodmap_emb (emb_id (leqnn m)) (emb_id s_le).
split=> [r /leq_trans/(_ R_le)/P_lt//|r r' rr' /leq_trans/(_ R_le)].
exact: P_incr.
Qed.

(** MAIN 1 dealt_map: Dealing the R query heads of each group over m copies of
    its key/value head, s to a copy, is a strictly increasing map of the query
    heads, in range, if the shares hold all heads and new groups have room; and
    each head reads a copy of the group that it read. *)
Theorem dealt_map : emb (G * R) (G' * R') (dealmap R R' m s)
  /\ forall h, h < G * R ->
     dealmap R R' m s h %/ R' < G * m /\ dealmap R R' m s h %/ R' %/ m = h %/ R.
Proof.
have [lt incr] := prodmap_emb (emb_id (leqnn G)) share_emb.
split=> [|h h_lt].
  split=> // h /lt/leq_trans; apply; by rewrite mulnA leq_mul2r G_le orbT.
have g_lt := divn_lt h_lt; have r_lt := modn_lt h_lt.
have r_ms := leq_trans r_lt R_le; have q_lt := divn_lt r_ms.
have rs := leq_trans (modn_lt r_ms) s_le; have R'_gt0 := leq_ltn_trans (leq0n _) rs.
have -> : dealmap R R' m s h %/ R' = h %/ R * m + h %% R %/ s.
  by rewrite {1}(divn_eq h R) dealmapE // divnMDl // (divn_small rs) addn0.
split; first exact: flat_lt.
by rewrite divnMDl ?(divn_small q_lt) ?addn0 // (leq_ltn_trans _ q_lt).
Qed.

End Maps.

Section Dealt.
Variables (A : arith) (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A).
Variables (T : nat) (d d' : dims) (ed e : nat -> nat) (m s : nat).
Hypotheses (grp_le : grp d * m <= grp d') (rep_le : rep d <= m * s) (s_le : s <= rep d').
Hypotheses (edP : emb (hid d) (hid d') ed) (eP : emb (lane d) (lane d') e).

Let hm := dealmap (rep d) (rep d') m s.
Let qm := prodmap (lane d) (lane d') hm e.
Let D := hid d. Let D' := hid d'. Let K := lane d. Let K' := lane d'.
Let hmP : emb (hds d) (hds d') hm := (dealt_map grp_le rep_le s_le).1.
Let qmP : emb (qry d) (qry d') qm := prodmap_emb hmP eP.

Definition copied (W W' : mat A) := forall g k i, g < grp d * m -> k < K -> i < D ->
  W' (g * K' + e k) (ed i) = W (g %/ m * K + k) i.
Definition copied1 (b b' : vec A) := forall g k, g < grp d * m -> k < K ->
  b' (g * K' + e k) = b (g %/ m * K + k).

Record attn_dealt (c : A -> A) (p p' : attn A) := AttnDealt {
  dq_at : scattered (qry d) (qry d') D D' qm ed (fun o i => c (wq p o i)) (wq p');
  dbq_at : padded (qry d) (qry d') qm (fun o => c (bq p o)) (bq p');
  dk_at : copied (wk p) (wk p'); dbk_at : copied1 (bk p) (bk p');
  dv_at : copied (wv p) (wv p'); dbv_at : copied1 (bv p) (bv p');
  do_at : scattered D D' (qry d) (qry d') ed qm (wo p) (wo p');
  dbo_at : padded D D' ed (bo p) (bo p') }.

Lemma dealt_free c p p' : attn_dealt c p p' -> attn_free d d' ed hm e c p p'.
Proof.
case=> [[q q0] [bq_ bq0] k bk_ v bv_ oS bo_]; split=> //.
- move=> h k' h_lt k_lt k_off; have [hm_lt _] := hmP.
  have a_off: ~~ img (qry d) qm (hm h * lane d' + k').
    by rewrite img_prodmap ?negb_and ?k_off ?orbT //; apply: eP.1.
  have a_lt: hm h * lane d' + k' < qry d' by rewrite flat_lt ?hm_lt.
  by split=> [i i_lt|]; rewrite ?q0 ?bq0 ?a_off ?(edP.1) //.
- move=> h k' h_lt k_lt; have [g_lt <-] := (dealt_map grp_le rep_le s_le).2 h h_lt.
  by split=> [i i_lt|]; [apply: k | apply: bk_].
- move=> h k' h_lt k_lt; have [g_lt <-] := (dealt_map grp_le rep_le s_le).2 h h_lt.
  by split=> [i i_lt|]; [apply: v | apply: bv_].
- by move: oS => [].
- by move=> i i_lt i_off; apply: (scattered_row qmP oS i_lt i_off).
by move=> a a_lt a_off; left; apply: scattered_col oS a_lt a_off.
Qed.

Variables (rot rot' : nat -> vec A -> vec A) (scale scale' c : A -> A).
Hypotheses (rotP : forall t, respects (lane d) (lane d') e (rot t) (rot' t)).
Hypotheses (cP : homothety c) (scaleP : forall z, scale' (c z) = scale z).
Hypothesis rot_c : forall t u k, rot t (fun k => c (u k)) k = c (rot t u k).

(** MAIN 4 attention_dealt: Attention whose key/value heads are each repeated m
    times, and whose query heads are dealt out over the copies in shares that are
    padded (28 heads on 4 groups to 32 on 8), in one growth with every other axis,
    maps padded hidden states to padded hidden states. *)
Theorem attention_dealt p p' x x' : attn_dealt c p p' ->
  (forall t, t < T -> padded D D' ed (x t) (x' t)) -> forall t, t < T ->
  padded D D' ed (attention softmax mask T d rot scale id id p x t)
                 (attention softmax mask T d' rot' scale' id id p' x' t).
Proof.
move=> pP xP; have P := free_grown edP cP (dealt_free pP).
exact (attention_grown softmax mask edP hmP eP rotP cP scaleP rot_c P xP).
Qed.

End Dealt.

(** MAIN 1 repeated_map: Where each key/value head is only repeated m times, under
    the same query heads, every query head stays in its place, and reads a copy of
    the head that it read. *)
Theorem repeated_map R m s h : 0 < s -> R = m * s ->
  dealmap R s m s h = h /\ h %/ s %/ m = h %/ R.
Proof.
move=> s_gt0 ->; split; last by rewrite -divnMA mulnC.
rewrite /dealmap /prodmap {1}[h %/ (m * s) * (m * s) + _]addnC.
by rewrite -divn_eq addnC -divn_eq.
Qed.
