From mathcomp Require Import all_ssreflect.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*  dims == the sizes of an attention block: hid D, grp G, rep R, lane K;     *)
(*          hds = G R query heads, qry = G R K, kv = G K are derived.         *)
(*  attn == its weights and biases. No bias is a zero bias.                   *)
(*  attention softmax mask T d rot scale p x == the block: T tokens x to T    *)
(*          outputs, o_proj included. Head h reads key/value group h / R.     *)
(*          softmax: any map of a row of scores. mask t t': any map of the    *)
(*          score. rot t: any map of a head vector at position t. scale: what *)
(*          becomes of q.k, as s / sqrt K.                                    *)
(*  attn_scattered == p' is p scattered along the axes, the rows of q times   *)
(*          the exact factor c, zero elsewhere.                               *)
(*  attn_free == as much as is needed of that: see Freedom.v.                 *)
(******************************************************************************)

Record dims := Dims { hid : nat; grp : nat; rep : nat; lane : nat }.
Definition hds d := grp d * rep d.
Definition qry d := hds d * lane d.
Definition kv d := grp d * lane d.

Record attn (A : arith) := Attn {
  wq : mat A; bq : vec A; wk : mat A; bk : vec A;
  wv : mat A; bv : vec A; wo : mat A; bo : vec A }.

Section Attention.
Variables (A : arith) (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A).
Variables (T : nat) (d : dims) (rot : nat -> vec A -> vec A) (scale : A -> A).
Variables (p : attn A) (x : mat A).

Definition head h (y : vec A) : vec A := fun k => y (h * lane d + k).
Definition query t := affine (hid d) (wq p) (bq p) (x t).
Definition key t := affine (hid d) (wk p) (bk p) (x t).
Definition value t := affine (hid d) (wv p) (bv p) (x t).
Definition score t h t' := mask t t' (scale
  (dot (lane d) (rot t (head h (query t))) (rot t' (head (h %/ rep d) (key t'))))).
Definition prob t h := nth zero (softmax (mkseq (score t h) T)).
Definition context t : vec A := fun a =>
  let: h := a %/ lane d in
  dot T (prob t h) (fun t' => head (h %/ rep d) (value t') (a %% lane d)).
Definition attention t := affine (qry d) (wo p) (bo p) (context t).

End Attention.

Section Grown.
Variables (A : arith) (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A).
Variables (T : nat) (d d' : dims) (ed e : nat -> nat).
Variables (rot rot' : nat -> vec A -> vec A) (scale scale' c : A -> A).
Hypotheses (grp_le : grp d <= grp d') (rep_le : rep d <= rep d').
Hypotheses (edP : emb (hid d) (hid d') ed) (eP : emb (lane d) (lane d') e).
Hypotheses (rotP : forall t, respects (lane d) (lane d') e (rot t) (rot' t)).
Hypotheses (cP : homothety c) (scaleP : forall s, scale' (c s) = scale s).
Hypothesis rot_c : forall t u k, rot t (fun k => c (u k)) k = c (rot t u k).

Let hm := headmap (rep d) (rep d').
Let qm := qmap (rep d) (lane d) (rep d') (lane d') e.
Let kvm := kvmap (lane d) (lane d') e.
Let D := hid d. Let D' := hid d'.
Let vrow a := a %/ lane d' %/ rep d' * lane d' + a %% lane d'.
Let scaled (W : mat A) : mat A := fun o i => c (W o i).

Record attn_free (p p' : attn A) := AttnFree {
  q_old : agree2 (qry d) D qm ed (scaled (wq p)) (wq p');
  bq_old : agree (qry d) qm (fun o => c (bq p o)) (bq p');
  q_lane : forall h k, h < hds d -> k < lane d' -> ~~ img (lane d) e k ->
    zero_row D ed (wq p') (hm h * lane d' + k) /\ bq p' (hm h * lane d' + k) = zero;
  k_old : agree2 (kv d) D kvm ed (wk p) (wk p');
  bk_old : agree (kv d) kvm (bk p) (bk p');
  v_old : agree2 (kv d) D kvm ed (wv p) (wv p');
  bv_old : agree (kv d) kvm (bv p) (bv p');
  o_old : agree2 D (qry d) ed qm (wo p) (wo p');
  o_row : forall i, i < D' -> ~~ img D ed i -> zero_row (qry d) qm (wo p') i;
  bo_pad : padded D D' ed (bo p) (bo p');
  silent : forall a, a < qry d' -> ~~ img (qry d) qm a ->
    (forall i, i < D' -> wo p' i a = zero)
    \/ (zero_row D ed (wv p') (vrow a) /\ bv p' (vrow a) = zero) }.

Record attn_scattered (p p' : attn A) := AttnScattered {
  q_at : scattered (qry d) (qry d') D D' qm ed (scaled (wq p)) (wq p');
  bq_at : padded (qry d) (qry d') qm (fun o => c (bq p o)) (bq p');
  k_at : scattered (kv d) (kv d') D D' kvm ed (wk p) (wk p');
  bk_at : padded (kv d) (kv d') kvm (bk p) (bk p');
  v_at : scattered (kv d) (kv d') D D' kvm ed (wv p) (wv p');
  bv_at : padded (kv d) (kv d') kvm (bv p) (bv p');
  o_at : scattered D D' (qry d) (qry d') ed qm (wo p) (wo p');
  bo_at : padded D D' ed (bo p) (bo p') }.

Let hmP : emb (hds d) (hds d') hm := headmap_emb grp_le rep_le.
Let qmP : emb (qry d) (qry d') qm := prodmap_emb hmP eP.
Let kvmP : emb (kv d) (kv d') kvm := prodmap_emb (emb_id grp_le) eP.

Lemma scattered_free p p' : attn_scattered p p' -> attn_free p p'.
Proof.
case=> [[q q0] [bq_ bq0] [k _] [bk_ _] [v _] [bv_ _] oS bo_]; split=> //.
- move=> h k' h_lt k_lt k_off; have [hm_lt _] := hmP.
  have a_off: ~~ img (qry d) qm (hm h * lane d' + k').
    by rewrite img_prodmap ?negb_and ?k_off ?orbT //; apply: eP.1.
  have a_lt: hm h * lane d' + k' < qry d' by rewrite flat_lt ?hm_lt.
  by split=> [i i_lt|]; rewrite ?q0 ?bq0 ?a_off ?(edP.1) //.
- by move: oS => [].
- by move=> i i_lt i_off; apply: (scattered_row qmP oS i_lt i_off).
by move=> a a_lt a_off; left; apply: scattered_col oS a_lt a_off.
Qed.

Lemma dot_c n (u v : vec A) : dot n (fun i => c (u i)) v = c (dot n u v).
Proof.
have [D_ M_] := cP; rewrite /dot; elim: n => /= [|n ->]; last by rewrite D_ M_.
by rewrite -{2}(mulx0 zero) M_ mulx0.
Qed.

Lemma affine_c n W b (x : vec A) o :
  affine n (scaled W) (fun o => c (b o)) x o = c (affine n W b x o).
Proof. by rewrite /affine (cD cP) -dot_c. Qed.

Section Block.
Variables (p p' : attn A) (x x' : mat A).
Hypotheses (pP : attn_free p p').
Hypothesis xP : forall t, t < T -> padded D D' ed (x t) (x' t).

Local Notation q := (query d p x).
Local Notation q' := (query d' p' x').
Local Notation ctx := (context softmax mask T d rot scale p x).
Local Notation ctx' := (context softmax mask T d' rot' scale' p' x').

Lemma key_grown t g : t < T -> g < grp d ->
  agree (lane d) e (head d g (key d p x t)) (head d' g (key d' p' x' t)).
Proof.
move=> t_lt g_lt k k_lt; rewrite /head -(kvmapE _ e g k_lt).
by have := affine_old edP (k_old pP) (bk_old pP) (xP t_lt) (flat_lt g_lt k_lt).
Qed.

Lemma value_grown t g : t < T -> g < grp d ->
  agree (lane d) e (head d g (value d p x t)) (head d' g (value d' p' x' t)).
Proof.
move=> t_lt g_lt k k_lt; rewrite /head -(kvmapE _ e g k_lt).
by have := affine_old edP (v_old pP) (bv_old pP) (xP t_lt) (flat_lt g_lt k_lt).
Qed.

Lemma query_grown t h : t < T -> h < hds d ->
  agree (lane d) e (fun k => c (head d h (q t) k)) (head d' (hm h) (q' t))
  /\ off (lane d) (lane d') e (head d' (hm h) (q' t)).
Proof.
move=> t_lt h_lt; split=> [k k_lt|k k_lt k_off].
  rewrite /head /query -affine_c -(prodmap_at _ hm e h k_lt).
  by have := affine_old edP (q_old pP) (bq_old pP) (xP t_lt) (flat_lt h_lt k_lt).
have [W0 b0] := q_lane pP h_lt k_lt k_off.
exact: affine_zero (xP t_lt).2 W0 b0.
Qed.

Lemma group_lt h : h < hds d -> h %/ rep d < grp d.
Proof. exact: divn_lt. Qed.

Lemma group_hm h : h < hds d -> hm h %/ rep d' = h %/ rep d.
Proof.
move=> h_lt; have r_lt := leq_trans (modn_lt h_lt) rep_le.
have R_gt0 := leq_ltn_trans (leq0n _) r_lt.
by rewrite /hm /headmap /prodmap divnMDl // (divn_small r_lt) addn0.
Qed.

Lemma score_grown t h t' : t < T -> t' < T -> h < hds d ->
  score mask d' rot' scale' p' x' t (hm h) t' = score mask d rot scale p x t h t'.
Proof.
move=> t_lt t'_lt h_lt; have [qq q_off] := query_grown t_lt h_lt.
have kk := key_grown t'_lt (group_lt h_lt).
rewrite /score (group_hm h_lt) -scaleP; congr (mask _ _ (scale' _)).
transitivity (dot (lane d) (fun k => c (rot t (head d h (q t)) k))
                           (rot t' (head d (h %/ rep d) (key d p x t')))).
  apply: (zero_insertion eP).
  - by move=> k k_lt; rewrite (proj1 (rotP t) _ _ qq) ?rot_c.
  - exact: (proj1 (rotP t')).
  by move=> k k_lt k_off; left; apply: (proj2 (rotP t) _ q_off).
exact: dot_c.
Qed.

Lemma prob_grown t h : t < T -> h < hds d ->
  prob softmax mask T d' rot' scale' p' x' t (hm h)
  = prob softmax mask T d rot scale p x t h.
Proof.
move=> t_lt h_lt; rewrite /prob /mkseq; congr (nth _ (softmax _)).
by apply/eq_in_map => t'; rewrite mem_iota => t'_lt; apply: score_grown.
Qed.

Lemma qm_div a : a < qry d -> qm a %/ lane d' = hm (a %/ lane d).
Proof.
move=> /modn_lt/(eP.1) e_lt; have K_gt0 := leq_ltn_trans (leq0n _) e_lt.
by rewrite /qm /qmap /prodmap divnMDl // (divn_small e_lt) addn0.
Qed.

Lemma qm_mod a : a < qry d -> qm a %% lane d' = e (a %% lane d).
Proof.
by move=> /modn_lt/(eP.1) e_lt; rewrite /qm /qmap /prodmap modnMDl modn_small.
Qed.

Lemma context_grown t : t < T -> agree (qry d) qm (ctx t) (ctx' t).
Proof.
move=> t_lt a a_lt; have h_lt := divn_lt a_lt.
rewrite /context qm_div // qm_mod // prob_grown // group_hm //.
apply: eq_osum => t' t'_lt; congr (_ *. _).
exact: value_grown (group_lt h_lt) _ (modn_lt a_lt).
Qed.

Lemma new_silent t a i : t < T -> a < qry d' -> ~~ img (qry d) qm a -> i < D' ->
  wo p' i a = zero \/ ctx' t a = zero.
Proof.
move=> t_lt a_lt a_off i_lt; case: (silent pP a_lt a_off) => [W0|[W0 b0]].
  by left; apply: W0.
right; rewrite /context; apply: osum0 => t' t'_lt.
by rewrite [head _ _ _ _](affine_zero (xP t'_lt).2 W0 b0) mulx0.
Qed.

Lemma attention_grown t : t < T ->
  padded D D' ed (attention softmax mask T d rot scale p x t)
                 (attention softmax mask T d' rot' scale' p' x' t).
Proof.
move=> t_lt; split=> [i i_lt|i i_lt i_off]; rewrite /attention /affine.
  rewrite (bo_pad pP).1 //; congr (_ +. _); apply: (zero_insertion qmP).
  - by move=> a a_lt; apply: (o_old pP).
  - exact: context_grown.
  by move=> a a_lt a_off; apply: new_silent => //; apply: edP.1.
rewrite (bo_pad pP).2 // addx0; apply: osum0 => a a_lt.
case: (boolP (img (qry d) qm a)) => [/imgP[a0 a0_lt <-]|a_off].
  by rewrite (o_row pP) ?mul0x.
by case: (new_silent t_lt a_lt a_off i_lt) => ->; rewrite (mul0x, mulx0).
Qed.

End Block.

Variables (p p' : attn A) (x x' : mat A).
Hypotheses (pP : attn_scattered p p').
Hypothesis xP : forall t, t < T -> padded D D' ed (x t) (x' t).

(** MAIN 4 attention_padded: Attention whose weights are scattered along the
    axes maps padded hidden states to padded hidden states, for any row-wise
    softmax, any mask, any position map that commutes with padding, grouped
    heads, and any exact factor c on q that the new score scale takes back. *)
Theorem attention_padded t : t < T ->
  padded D D' ed (attention softmax mask T d rot scale p x t)
                 (attention softmax mask T d' rot' scale' p' x' t).
Proof. exact: attention_grown (scattered_free pP) xP t. Qed.

(** MAIN 4 scores_kept: The scores and probabilities of every old query head are
    those of the old model. *)
Theorem scores_kept t h : t < T -> h < hds d ->
  (forall t', t' < T -> score mask d' rot' scale' p' x' t (hm h) t'
                        = score mask d rot scale p x t h t')
  /\ prob softmax mask T d' rot' scale' p' x' t (hm h)
     = prob softmax mask T d rot scale p x t h.
Proof.
move=> t_lt h_lt; have fP := scattered_free pP.
by split=> [t' t'_lt|]; [apply: score_grown | apply: prob_grown].
Qed.

(** MAIN 4 new_heads_silent: New heads, and new lanes of old heads, contribute
    nothing: each of their products with o_proj is zero. *)
Theorem new_heads_silent t a i : t < T -> a < qry d' -> ~~ img (qry d) qm a -> i < D' ->
  wo p' i a *. context softmax mask T d' rot' scale' p' x' t a = zero.
Proof.
move=> t_lt a_lt a_off i_lt.
by case: (new_silent (scattered_free pP) xP t_lt a_lt a_off i_lt) => ->;
  rewrite (mul0x, mulx0).
Qed.

End Grown.
