From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
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
(*  copied m K x == x with each block of K repeated m times: block g is block *)
(*           g / m of x, a vector or the rows of a matrix.                    *)
(*  attn_dealt == p' is p, its q and o scattered along dealmap, its k and v   *)
(*           copied and then scattered, the rows of q times c, those of k     *)
(*           times ck, zero elsewhere.                                        *)
(******************************************************************************)

Definition dealmap R R' m s := prodmap R (m * R') id (prodmap s R' id id).

Lemma dealmapE R R' m s g r : r < R ->
  dealmap R R' m s (g * R + r) = (g * m + r %/ s) * R' + r %% s.
Proof. by move=> r_R; rewrite /dealmap prodmap_at // /prodmap mulnDl mulnA addnA. Qed.

Definition copied (X : Type) m K (x : nat -> X) o := x (o %/ K %/ m * K + o %% K).

Lemma copied_at (X : Type) m K (x : nat -> X) g k : k < K ->
  copied m K x (g * K + k) = x (g %/ m * K + k).
Proof.
move=> k_K; have K_gt0 := leq_ltn_trans (leq0n _) k_K.
by rewrite /copied divnMDl // (divn_small k_K) addn0 modnMDl modn_small.
Qed.

(* one block is its own first copy *)
Lemma copied_lane (X : Type) m K (x : nat -> X) k : k < K -> copied m K x k = x k.
Proof. by move=> k_K; rewrite -[k in LHS]add0n -(mul0n K) copied_at // div0n. Qed.

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

Section Dealt.
Variables (A : arith) (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A).
Variables (T : nat) (d d' : dims) (ed e : nat -> nat) (m s : nat).
Hypotheses (grp_le : grp d * m <= grp d') (rep_le : rep d <= m * s) (s_le : s <= rep d').
Hypotheses (edP : emb (hid d) (hid d') ed) (eP : emb (lane d) (lane d') e).

Let hm := dealmap (rep d) (rep d') m s.
Let qm := prodmap (lane d) (lane d') hm e.
Let kvm := kvmap (lane d) (lane d') e.
Let D := hid d. Let D' := hid d'. Let K := lane d. Let K' := lane d'.
Let hmP : emb (hds d) (hds d') hm := (dealt_map grp_le rep_le s_le).1.
Let qmP : emb (qry d) (qry d') qm := prodmap_emb hmP eP.
Let kvmP : emb (grp d * m * K) (kv d') kvm := prodmap_emb (emb_id grp_le) eP.

Record attn_dealt (c ck : A -> A) (p p' : attn A) := AttnDealt {
  dq_at : scattered (qry d) (qry d') D D' qm ed (fun o i => c (wq p o i)) (wq p');
  dbq_at : padded (qry d) (qry d') qm (fun o => c (bq p o)) (bq p');
  dk_at : scattered (grp d * m * K) (kv d') D D' kvm ed
    (fun o i => ck (copied m K (wk p) o i)) (wk p');
  dbk_at : padded (grp d * m * K) (kv d') kvm (fun o => ck (copied m K (bk p) o)) (bk p');
  dv_at : scattered (grp d * m * K) (kv d') D D' kvm ed (copied m K (wv p)) (wv p');
  dbv_at : padded (grp d * m * K) (kv d') kvm (copied m K (bv p)) (bv p');
  do_at : scattered D D' (qry d) (qry d') ed qm (wo p) (wo p');
  dbo_at : padded D D' ed (bo p) (bo p') }.

(* With norms of q and k: of each head (by_head), or of all heads together. *)
Section Normed.
Variables (c0 ck c : A -> A) (qn qn' kn kn' : vec A -> vec A) (p p' : attn A).
Hypotheses (c0P : homothety c0) (ckP : homothety ck) (pP : attn_dealt c0 ck p p').
Hypothesis qnP : forall x q', let q := query d id p x in
  padded (qry d) (qry d') qm (fun a => c0 (q a)) q' ->
  query_grown d d' hm e c (qn q) (qn' q').
Hypothesis knP : forall x k', let k := key d id p x in
  padded (grp d * m * K) (kv d') kvm (fun a => ck (copied m K k a)) k' ->
  heads_grown d d' hm e id (kn k) (kn' k').

Lemma scattered_affine f n n' eo W W' (b b' x x' : vec A) : homothety f ->
  scattered n n' D D' eo ed (fun o i => f (W o i)) W' ->
  padded n n' eo (fun o => f (b o)) b' -> padded D D' ed x x' ->
  padded n n' eo (fun o => f (affine D W b x o)) (affine D' W' b' x').
Proof.
move=> fP WW bb xx; have [y y0] := linear_padded edP WW bb xx.
by split=> // o o_lt; rewrite y // affine_c.
Qed.

Lemma head_copied h k (y y' : vec A) : h < hds d -> k < K ->
  padded (grp d * m * K) (kv d') kvm (copied m K y) y' ->
  head d' (hm h %/ rep d') y' (e k) = head d (h %/ rep d) y k.
Proof.
move=> h_lt k_lt [yy _]; have [g_lt gE] := (dealt_map grp_le rep_le s_le).2 h h_lt.
by rewrite /head -(kvmapE _ e _ k_lt) yy ?flat_lt // copied_at // gE.
Qed.

Lemma normed_grown : attn_grown d d' ed hm e c qn qn' kn kn' p p'.
Proof.
split.
- move=> x x' xP; apply: qnP.
  exact: scattered_affine c0P (dq_at pP) (dbq_at pP) xP.
- move=> x x' xP; apply: knP.
  exact: scattered_affine ckP (dk_at pP) (dbk_at pP) xP.
- move=> x x' xP h h_lt k k_lt; apply: (head_copied h_lt k_lt).
  by have := linear_padded edP (dv_at pP) (dbv_at pP) xP; apply.
- exact: (do_at pP).1.
- by move=> i i_lt i_off; apply: (scattered_row qmP (do_at pP) i_lt i_off).
- exact: (dbo_at pP).
by move=> a a_lt a_off; left; apply: scattered_col (do_at pP) a_lt a_off.
Qed.

End Normed.

Variables (rot rot' : nat -> vec A -> vec A) (scale scale' c : A -> A).
Hypotheses (rotP : forall t, respects (lane d) (lane d') e (rot t) (rot' t)).
Hypotheses (cP : homothety c) (scaleP : forall z, scale' (c z) = scale z).
Hypothesis rot_c : forall t u k, rot t (fun k => c (u k)) k = c (rot t u k).

Lemma dealt_grown p p' : attn_dealt c id p p' -> attn_grown d d' ed hm e c id id id id p p'.
Proof.
move=> pP; apply: (normed_grown cP _ pP) => // [x q' q qP h h_lt|x k' k kP h h_lt i i_lt].
  exact: head_padded qP.
exact: head_copied kP.
Qed.

(** MAIN 4 attention_dealt: Attention whose key/value heads are each repeated m
    times, and whose query heads are dealt out over the copies in shares that are
    padded (28 heads on 4 groups to 32 on 8), in one growth with every other axis,
    maps padded hidden states to padded hidden states. *)
Theorem attention_dealt p p' x x' : attn_dealt c id p p' ->
  (forall t, t < T -> padded D D' ed (x t) (x' t)) -> forall t, t < T ->
  padded D D' ed (attention softmax mask T d rot scale id id p x t)
                 (attention softmax mask T d' rot' scale' id id p' x' t).
Proof.
move=> /dealt_grown P xP.
exact (attention_grown softmax mask edP hmP eP rotP cP scaleP rot_c P xP).
Qed.

End Dealt.

(** MAIN 1 dealt_fits: Where G' is a multiple of m, G'/m at least G, and R' at least R/m
    rounded up, there is room for m copies of each key/value head and for all query heads,
    R/m rounded up to a copy. *)
Theorem dealt_fits G G' R R' m (s := (R + m.-1) %/ m) : 0 < m -> m %| G' ->
  G <= G' %/ m -> s <= R' -> [/\ G * m <= G', R <= m * s & s <= R'].
Proof.
move=> m_gt0 /divnK{2}<- G_le s_le; rewrite leq_mul2r G_le orbT; split=> //.
have := ltn_ceil (R + m.-1) m_gt0; rewrite -/s mulSn addnC [s * m]mulnC.
by rewrite [X in _ < X]addnC -[X in _ < _ + X](prednK m_gt0) addnS ltnS addnC leq_add2r.
Qed.

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
