From mathcomp Require Import ssreflect ssrfun ssrbool eqtype ssrnat seq div.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

(******************************************************************************)
(*  dims == the sizes of an attention block: hid D, grp G, rep R, lane K;     *)
(*          hds = G R query heads, qry = G R K, kv = G K are derived.         *)
(*  attn == its weights and biases. No bias is a zero bias.                   *)
(*  attention softmax mask T d rot scale qn kn p x == the block: T tokens x   *)
(*          to T outputs, o_proj included. Head h reads key/value group h / R.*)
(*          softmax: any map of a row of scores. mask t t': any map of the    *)
(*          score. rot t: any map of a head vector at position t. scale: what *)
(*          becomes of q.k, as s / sqrt K. qn, kn: the norms of the whole     *)
(*          query and key vectors; id where there are none.                   *)
(*  by_head K n == the map of such a vector that is n h on the lanes of head  *)
(*          h: a norm over head_dim, of one weight or of one for each head.   *)
(*  hm == where an old query head goes, any embedding; the group of its new   *)
(*          place has to be a copy of its old group.                          *)
(*  query_grown c, heads_grown == what a grown query, key or value vector     *)
(*          holds: the old heads, times c, in their new places; new lanes of  *)
(*          an old query head are zero, all else is free.                     *)
(*  attn_grown == all that is asked of a grown block: its query, key and value*)
(*          vectors are grown, and what o_proj reads besides is zero.         *)
(*  attn_scattered == p' is p scattered along the axes, the rows of q times   *)
(*          the factor c, zero elsewhere.                                     *)
(*  attn_free == as much as is needed of that: see Freedom.v.                 *)
(******************************************************************************)

Record dims := Dims { hid : nat; grp : nat; rep : nat; lane : nat }.
Definition hds d := grp d * rep d.
Definition qry d := hds d * lane d.
Definition kv d := grp d * lane d.

Record attn (A : arith) := Attn {
  wq : mat A; bq : vec A; wk : mat A; bk : vec A;
  wv : mat A; bv : vec A; wo : mat A; bo : vec A }.

Definition head (A : arith) d h (y : vec A) : vec A := fun k => y (h * lane d + k).
Definition by_head (A : arith) K (n : nat -> vec A -> vec A) (y : vec A) : vec A :=
  fun a => n (a %/ K) (fun k => y (a %/ K * K + k)) (a %% K).

Section Attention.
Variables (A : arith) (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A).
Variables (T : nat) (d : dims) (rot : nat -> vec A -> vec A) (scale : A -> A).

(* q, k and v: the vectors of all tokens *)
Section Core.
Variables q k v : mat A.
Definition score t h t' := mask t t' (scale
  (dot (lane d) (rot t (head d h (q t))) (rot t' (head d (h %/ rep d) (k t'))))).
Definition prob t h := nth zero (softmax (mkseq (score t h) T)).
Definition context t : vec A := fun a =>
  let: h := a %/ lane d in
  dot T (prob t h) (fun t' => head d (h %/ rep d) (v t') (a %% lane d)).
End Core.

Variables (qn kn : vec A -> vec A) (p : attn A).
Definition query x := qn (affine (hid d) (wq p) (bq p) x).
Definition key x := kn (affine (hid d) (wk p) (bk p) x).
Definition value x := affine (hid d) (wv p) (bv p) x.
Definition attention (x : mat A) t := affine (qry d) (wo p) (bo p)
  (context (fun t => query (x t)) (fun t => key (x t)) (fun t => value (x t)) t).

End Attention.

Section Grown.
Variables (A : arith) (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A).
Variables (T : nat) (d d' : dims) (ed hm e : nat -> nat).
Hypotheses (edP : emb (hid d) (hid d') ed) (hmP : emb (hds d) (hds d') hm).
Hypothesis eP : emb (lane d) (lane d') e.

Let qm := prodmap (lane d) (lane d') hm e.
Let D := hid d. Let D' := hid d'.
Let vrow a := a %/ lane d' %/ rep d' * lane d' + a %% lane d'.
Let qmP : emb (qry d) (qry d') qm := prodmap_emb hmP eP.

Definition query_grown (c : A -> A) (q q' : vec A) := forall h, h < hds d ->
  agree (lane d) e (fun k => c (head d h q k)) (head d' (hm h) q')
  /\ off (lane d) (lane d') e (head d' (hm h) q').
Definition heads_grown (c : A -> A) (u u' : vec A) := forall h, h < hds d ->
  agree (lane d) e (fun k => c (head d (h %/ rep d) u k)) (head d' (hm h %/ rep d') u').

Section Block.
Variables (c : A -> A) (qn qn' kn kn' : vec A -> vec A) (p p' : attn A).

Record attn_grown := AttnGrown {
  q_grown : forall x x', padded D D' ed x x' ->
    query_grown c (query d qn p x) (query d' qn' p' x');
  k_grown : forall x x', padded D D' ed x x' ->
    heads_grown id (key d kn p x) (key d' kn' p' x');
  v_grown : forall x x', padded D D' ed x x' ->
    heads_grown id (value d p x) (value d' p' x');
  o_old : agree2 D (qry d) ed qm (wo p) (wo p');
  o_row : forall i, i < D' -> ~~ img D ed i -> zero_row (qry d) qm (wo p') i;
  bo_pad : padded D D' ed (bo p) (bo p');
  silent : forall a, a < qry d' -> ~~ img (qry d) qm a ->
    (forall i, i < D' -> wo p' i a = zero)
    \/ forall x x', padded D D' ed x x' -> value d' p' x' (vrow a) = zero }.

Variables (rot rot' : nat -> vec A -> vec A) (scale scale' : A -> A) (x x' : mat A).
Hypotheses (rotP : forall t, respects (lane d) (lane d') e (rot t) (rot' t)).
Hypotheses (cP : homothety c) (scaleP : forall s, scale' (c s) = scale s).
Hypothesis rot_c : forall t u k, rot t (fun k => c (u k)) k = c (rot t u k).
Hypothesis pP : attn_grown.
Hypothesis xP : forall t, t < T -> padded D D' ed (x t) (x' t).

Let q t := query d qn p (x t). Let q' t := query d' qn' p' (x' t).
Let k t := key d kn p (x t). Let k' t := key d' kn' p' (x' t).
Let v t := value d p (x t). Let v' t := value d' p' (x' t).
Let ctx := context softmax mask T d rot scale q k v.
Let ctx' := context softmax mask T d' rot' scale' q' k' v'.

Lemma dot_c n (u w : vec A) : dot n (fun i => c (u i)) w = c (dot n u w).
Proof.
have [D_ M_] := cP; rewrite /dot; elim: n => /= [|n ->]; last by rewrite D_ M_.
by rewrite -{2}(mulx0 zero) M_ mulx0.
Qed.

Lemma score_grown t h t' : t < T -> t' < T -> h < hds d ->
  score mask d' rot' scale' q' k' t (hm h) t' = score mask d rot scale q k t h t'.
Proof.
move=> t_lt t'_lt h_lt; have [qq q_off] := q_grown pP (xP t_lt) h_lt.
have kk := k_grown pP (xP t'_lt) h_lt.
rewrite /score -scaleP; congr (mask _ _ (scale' _)).
transitivity (dot (lane d) (fun i => c (rot t (head d h (q t)) i))
                           (rot t' (head d (h %/ rep d) (k t')))).
  apply: (zero_insertion eP).
  - by move=> i i_lt; rewrite (proj1 (rotP t) _ _ qq) ?rot_c.
  - exact: (proj1 (rotP t')).
  by move=> i i_lt i_off; left; apply: (proj2 (rotP t) _ q_off).
exact: dot_c.
Qed.

Lemma prob_grown t h : t < T -> h < hds d ->
  prob softmax mask T d' rot' scale' q' k' t (hm h)
  = prob softmax mask T d rot scale q k t h.
Proof.
move=> t_lt h_lt; rewrite /prob /mkseq; congr (nth _ (softmax _)).
by apply/eq_in_map => t'; rewrite mem_iota => t'_lt; apply: score_grown.
Qed.

Lemma qm_div a : a < qry d -> qm a %/ lane d' = hm (a %/ lane d).
Proof.
move=> /modn_lt/(eP.1) e_lt; have K_gt0 := leq_ltn_trans (leq0n _) e_lt.
by rewrite /qm /prodmap divnMDl // (divn_small e_lt) addn0.
Qed.

Lemma qm_mod a : a < qry d -> qm a %% lane d' = e (a %% lane d).
Proof. by move=> /modn_lt/(eP.1) e_lt; rewrite /qm /prodmap modnMDl modn_small. Qed.

Lemma context_grown t : t < T -> agree (qry d) qm (ctx t) (ctx' t).
Proof.
move=> t_lt a a_lt; have h_lt := divn_lt a_lt.
rewrite /ctx' /context qm_div // qm_mod // prob_grown //.
apply: eq_osum => t' t'_lt; congr (_ *. _).
exact: (v_grown pP (xP t'_lt) h_lt) (modn_lt a_lt).
Qed.

Lemma new_silent t a i : t < T -> a < qry d' -> ~~ img (qry d) qm a -> i < D' ->
  wo p' i a = zero \/ ctx' t a = zero.
Proof.
move=> t_lt a_lt a_off i_lt; case: (silent pP a_lt a_off) => [W0|v0].
  by left; apply: W0.
right; rewrite /ctx' /context; apply: osum0 => t' t'_lt.
by rewrite [head _ _ _ _](v0 _ _ (xP t'_lt)) mulx0.
Qed.

Lemma attention_grown t : t < T ->
  padded D D' ed (attention softmax mask T d rot scale qn kn p x t)
                 (attention softmax mask T d' rot' scale' qn' kn' p' x' t).
Proof.
move=> t_lt; split=> [i i_lt|i i_lt i_off]; rewrite /attention /affine.
  rewrite (bo_pad pP).1 //; congr (_ +. _); apply: (zero_insertion qmP).
  - by move=> a a_lt; apply: (o_old pP).
  - exact: context_grown.
  by move=> a a_lt a_off; apply: new_silent => //; apply: edP.1.
rewrite (bo_pad pP).2 // addx0; apply: osum0 => a a_lt.
case: (boolP (img (qry d) qm a)) => [/imgP[a0 a0_lt <-]|a_off].
  by rewrite (o_row pP) ?mul0x.
rewrite -/(ctx' t a).
by case: (new_silent t_lt a_lt a_off i_lt) => ->; rewrite (mul0x, mulx0).
Qed.

End Block.

(* From weights to grown vectors. *)
Section Weights.
Variables (c : A -> A) (p p' : attn A).
Hypothesis cP : homothety c.
Let scaled (f : A -> A) (W : mat A) : mat A := fun o i => f (W o i).
Let source h k := h %/ rep d * lane d + k.
Let place h k := hm h %/ rep d' * lane d' + e k.

Record attn_free := AttnFree {
  q_old : agree2 (qry d) D qm ed (scaled c (wq p)) (wq p');
  bq_old : agree (qry d) qm (fun o => c (bq p o)) (bq p');
  q_lane : forall h k, h < hds d -> k < lane d' -> ~~ img (lane d) e k ->
    zero_row D ed (wq p') (hm h * lane d' + k) /\ bq p' (hm h * lane d' + k) = zero;
  k_old : forall h k, h < hds d -> k < lane d ->
    (forall i, i < D -> wk p' (place h k) (ed i) = wk p (source h k) i)
    /\ bk p' (place h k) = bk p (source h k);
  v_old : forall h k, h < hds d -> k < lane d ->
    (forall i, i < D -> wv p' (place h k) (ed i) = wv p (source h k) i)
    /\ bv p' (place h k) = bv p (source h k);
  o_old_ : agree2 D (qry d) ed qm (wo p) (wo p');
  o_row_ : forall i, i < D' -> ~~ img D ed i -> zero_row (qry d) qm (wo p') i;
  bo_pad_ : padded D D' ed (bo p) (bo p');
  silent_ : forall a, a < qry d' -> ~~ img (qry d) qm a ->
    (forall i, i < D' -> wo p' i a = zero)
    \/ (zero_row D ed (wv p') (vrow a) /\ bv p' (vrow a) = zero) }.

Lemma affine_c f n W b (x : vec A) o : homothety f ->
  affine n (scaled f W) (fun o => f (b o)) x o = f (affine n W b x o).
Proof. by move=> fP; rewrite /affine (cD fP) -(dot_c fP). Qed.

Lemma affine_at f W W' (b b' x x' : vec A) o o' : homothety f ->
  (forall i, i < D -> W' o' (ed i) = f (W o i)) -> b' o' = f (b o) ->
  padded D D' ed x x' -> affine D' W' b' x' o' = f (affine D W b x o).
Proof.
move=> fP WW bb xP; rewrite -affine_c // /affine bb; congr (_ +. _).
apply: (zero_insertion edP) xP.1 _ => // j j_lt j_off; by right; apply: xP.2.
Qed.

Lemma query_affine x x' : attn_free -> padded D D' ed x x' ->
  query_grown c (affine D (wq p) (bq p) x) (affine D' (wq p') (bq p') x').
Proof.
move=> pP xP h h_lt; split=> [k k_lt|k k_lt k_off].
  rewrite /head -(prodmap_at _ hm e h k_lt) -/qm.
  have a_lt := flat_lt h_lt k_lt; apply: affine_at => // [i i_lt|].
    exact: (q_old pP).
  exact: (bq_old pP).
have [W0 b0] := q_lane pP h_lt k_lt k_off; exact: affine_zero xP.2 W0 b0.
Qed.

Lemma free_grown : attn_free -> attn_grown c id id id id p p'.
Proof.
move=> pP; split.
- by move=> x x' xP; apply: query_affine.
- move=> x x' xP h h_lt k k_lt; have [Wk b_k] := k_old pP h_lt k_lt.
  by rewrite [LHS](@affine_at id (wk p) _ (bk p) _ x _ (source h k)).
- move=> x x' xP h h_lt k k_lt; have [Wv b_v] := v_old pP h_lt k_lt.
  by rewrite [LHS](@affine_at id (wv p) _ (bv p) _ x _ (source h k)).
- exact: (o_old_ pP).
- exact: (o_row_ pP).
- exact: (bo_pad_ pP).
move=> a a_lt a_off; case: (silent_ pP a_lt a_off) => [W0|[W0 b0]]; [by left|right].
by move=> x x' xP; apply: affine_zero xP.2 W0 b0.
Qed.

End Weights.
End Grown.

Section Scattered.
Variables (A : arith) (softmax : seq A -> seq A) (mask : nat -> nat -> A -> A).
Variables (T : nat) (d d' : dims) (ed e : nat -> nat).
Hypotheses (grp_le : grp d <= grp d') (rep_le : rep d <= rep d').
Hypotheses (edP : emb (hid d) (hid d') ed) (eP : emb (lane d) (lane d') e).

Let hm := headmap (rep d) (rep d').
Let qm := qmap (rep d) (lane d) (rep d') (lane d') e.
Let kvm := kvmap (lane d) (lane d') e.
Let D := hid d. Let D' := hid d'.
Let hmP : emb (hds d) (hds d') hm := headmap_emb grp_le rep_le.
Let qmP : emb (qry d) (qry d') qm := prodmap_emb hmP eP.

Record attn_scattered (c : A -> A) (p p' : attn A) := AttnScattered {
  q_at : scattered (qry d) (qry d') D D' qm ed (fun o i => c (wq p o i)) (wq p');
  bq_at : padded (qry d) (qry d') qm (fun o => c (bq p o)) (bq p');
  k_at : scattered (kv d) (kv d') D D' kvm ed (wk p) (wk p');
  bk_at : padded (kv d) (kv d') kvm (bk p) (bk p');
  v_at : scattered (kv d) (kv d') D D' kvm ed (wv p) (wv p');
  bv_at : padded (kv d) (kv d') kvm (bv p) (bv p');
  o_at : scattered D D' (qry d) (qry d') ed qm (wo p) (wo p');
  bo_at : padded D D' ed (bo p) (bo p') }.

Lemma group_hm h : h < hds d -> hm h %/ rep d' = h %/ rep d.
Proof.
move=> h_lt; have r_lt := leq_trans (modn_lt h_lt) rep_le.
have R_gt0 := leq_ltn_trans (leq0n _) r_lt.
by rewrite /hm /headmap /prodmap divnMDl // (divn_small r_lt) addn0.
Qed.

Lemma scattered_free c p p' : attn_scattered c p p' -> attn_free d d' ed hm e c p p'.
Proof.
case=> [[q q0] [bq_ bq0] [k _] [bk_ _] [v _] [bv_ _] oS bo_]; split=> //.
- move=> h k' h_lt k_lt k_off; have [hm_lt _] := hmP.
  have a_off: ~~ img (qry d) qm (hm h * lane d' + k').
    by rewrite img_prodmap ?negb_and ?k_off ?orbT //; apply: eP.1.
  have a_lt: hm h * lane d' + k' < qry d' by rewrite flat_lt ?hm_lt.
  by split=> [i i_lt|]; rewrite ?q0 ?bq0 ?a_off ?(edP.1) //.
- move=> h k' h_lt k_lt; rewrite group_hm // -(kvmapE _ e _ k_lt).
  have a_lt := flat_lt (divn_lt h_lt) k_lt.
  by split=> [i i_lt|]; [apply: k | apply: bk_].
- move=> h k' h_lt k_lt; rewrite group_hm // -(kvmapE _ e _ k_lt).
  have a_lt := flat_lt (divn_lt h_lt) k_lt.
  by split=> [i i_lt|]; [apply: v | apply: bv_].
- by move: oS => [].
- by move=> i i_lt i_off; apply: (scattered_row qmP oS i_lt i_off).
by move=> a a_lt a_off; left; apply: scattered_col oS a_lt a_off.
Qed.

Variables (rot rot' : nat -> vec A -> vec A) (scale scale' c : A -> A).
Hypotheses (rotP : forall t, respects (lane d) (lane d') e (rot t) (rot' t)).
Hypotheses (cP : homothety c) (scaleP : forall s, scale' (c s) = scale s).
Hypothesis rot_c : forall t u k, rot t (fun k => c (u k)) k = c (rot t u k).
Variables (p p' : attn A) (x x' : mat A).
Hypotheses (pP : attn_scattered c p p').
Hypothesis xP : forall t, t < T -> padded D D' ed (x t) (x' t).

Lemma scattered_grown : attn_grown d d' ed hm e c id id id id p p'.
Proof. exact (free_grown edP cP (scattered_free pP)). Qed.

(** MAIN 4 attention_padded: Attention whose weights are scattered along the
    axes maps padded hidden states to padded hidden states, for any row-wise
    softmax, any mask, any position map that commutes with padding, grouped
    heads, and any exact factor c on q that the new score scale takes back. *)
Theorem attention_padded t : t < T ->
  padded D D' ed (attention softmax mask T d rot scale id id p x t)
                 (attention softmax mask T d' rot' scale' id id p' x' t).
Proof. exact: attention_grown scattered_grown xP t. Qed.

Let q t := query d id p (x t). Let q' t := query d' id p' (x' t).
Let k t := key d id p (x t). Let k' t := key d' id p' (x' t).

(** MAIN 4 scores_kept: The scores and probabilities of every old query head are
    those of the old model. *)
Theorem scores_kept t h : t < T -> h < hds d ->
  (forall t', t' < T -> score mask d' rot' scale' q' k' t (hm h) t'
                        = score mask d rot scale q k t h t')
  /\ prob softmax mask T d' rot' scale' q' k' t (hm h)
     = prob softmax mask T d rot scale q k t h.
Proof.
move=> t_lt h_lt; have P := scattered_grown.
split=> [t' t'_lt|]; first exact (score_grown mask eP rotP cP scaleP
  rot_c P xP t_lt t'_lt h_lt).
exact (prob_grown softmax mask eP rotP cP scaleP rot_c P xP t_lt h_lt).
Qed.

(** MAIN 4 new_heads_silent: New heads, and new lanes of old heads, contribute
    nothing: each of their products with o_proj is zero. *)
Theorem new_heads_silent t a i : a < qry d' -> ~~ img (qry d) qm a -> i < D' ->
  wo p' i a *. context softmax mask T d' rot' scale' q' k'
    (fun t => value d' p' (x' t)) t a = zero.
Proof.
by move=> a_lt a_off i_lt; rewrite (scattered_col (o_at pP) a_lt a_off) ?mul0x.
Qed.

End Scattered.
