From mathcomp Require Import all_ssreflect all_algebra.
From Growproof Require Import Arith AxisMaps Insertion Linear Rotary Attention.
From Growproof Require Import Dealt Mlp Experts RmsNorm LayerNorm Scale QkNorm.
From Growproof Require Import Decoder Centred Families.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.

Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(******************************************************************************)
(* What a grower writes, of each family, and that it can be written.          *)
(*                                                                            *)
(*    growth == the sizes, old and new, with mlp neurons; where old neurons   *)
(*              go (any embedding); how many copies there are of each         *)
(*              key/value head, over which its query heads are dealt, share   *)
(*              to a copy; whether new lanes of a head lie between the old    *)
(*              ones; whether the head is the embedding (tied); whether norms *)
(*              keep the old divisor (keep: a masked model).                  *)
(*    possible c g == no size shrinks, the copies and shares fit, and so do   *)
(*              the lanes that turn; a masked model stays one.                *)
(*    writes k k' == k' is what a grower writes: each parameter scattered     *)
(*              along its axes, times one scalar, q and k centred first where *)
(*              a LayerNorm of their heads gets lanes. New entries of norms,  *)
(*              and of the head on new lanes and for new tokens, are free.    *)
(*    grow_weights k s == one such k', with s as its layers.                  *)
(******************************************************************************)

Record growth := Growth { old : dims; new : dims; mlp_old : nat; mlp_new : nat;
  unit_place : nat -> nat; copies : nat; share : nat; between : bool; tied : bool;
  keep : bool }.

Definition ratio (R : rcfType) (m n : nat) : R := Num.sqrt (m%:R / n%:R).

Section Possible.
Variables (R : rcfType) (c : config R) (g : growth).

(* new lanes between the old ones, or behind each half, or behind all *)
Definition place : nat -> nat := let K := lane (old g) in let K' := lane (new g) in
  if lanes c is Some _ then id else if between g then muln (K' %/ K) else splitmap K K'.
Definition lanes_fit : bool := let K := lane (old g) in let K' := lane (new g) in
  if lanes c is Some n then (n <= K)%N
  else ~~ odd K && (if between g then K %| K' else ~~ odd K')%N.

Record possible : Prop := Possible {
  sizes_gt0 : [/\ 0 < hid (old g), 0 < grp (old g), 0 < rep (old g)
    & 0 < lane (old g)]%N;
  hid_fits : (hid (old g) <= hid (new g))%N;
  copies_fit : (grp (old g) * copies g <= grp (new g))%N;
  shares_hold : (rep (old g) <= copies g * share g)%N;
  shares_fit : (share g <= rep (new g))%N;
  lane_fits : (lane (old g) <= lane (new g))%N;
  mlp_fits : emb (mlp_old g) (mlp_new g) (unit_place g);
  lanes_fitP : lanes_fit;
  divisor_fits : if norm_size c is Some n then keep g && (0 < n <= hid (old g))%N
    else true }.

End Possible.

Section Written.
Variables (R : rcfType) (power : R -> R -> R) (f : family).
Variables (c : config R) (g : growth).
Let A := ring_arith R.
Let N : Type := (nat -> R) * (nat -> R).
Local Notation kind := (kind R).
Local Notation params := (params (ring_arith R)).
Local Notation weights := (weights (ring_arith R)).
Local Notation ratio := (ratio R).
Local Notation one := (one R f).
Local Notation d := (old g).
Local Notation d' := (new g).
Local Notation D := (hid (old g)).
Local Notation D' := (hid (new g)).
Local Notation G := (grp (old g)).
Local Notation G' := (grp (new g)).
Local Notation K := (lane (old g)).
Local Notation K' := (lane (new g)).
Local Notation F := (mlp_old g).
Local Notation F' := (mlp_new g).
Local Notation ef := (unit_place g).
Local Notation kvs := (grp (old g) * copies g * lane (old g))%N.
Local Notation place := (place c g).

Definition grow_theta (x : R) : R :=
  if (lanes c == None) && ~~ between g then power x (K'%:R / K%:R) else x.
Definition grow_kind (kd : kind) :=
  Kind (omap grow_theta (theta kd)) (cosine kd) (sine kd) (masked kd).
Definition divisor_new : nat := if keep g then divisor c D else D'.
Definition grow_config := Config (eps c * ((divisor c D)%:R / divisor_new%:R))
  (if keep g then Some divisor_new else None) (score c) (lanes c) (ebd_times c)
  (res_times c) (cap_logits c) (activation c).

(* the scalars: of the scores, of norms, of q and k, of the embedding, of the head *)
Definition of_score : R := if score c is Some _ then 1 else ratio K' K.
Definition of_norm : R := ratio (divisor c D) divisor_new.
Definition of_q : R := match qk f with
  | NoNorm => of_score
  | OfHead | LayerOfHead => of_norm * ratio K' K
  | OfAll => of_norm * ratio (qry d') (qry d)
  end.
Definition of_k : R := match qk f with
  | NoNorm => 1
  | OfHead | LayerOfHead => of_norm * ratio K' K
  | OfAll => of_norm * ratio (kv d') kvs
  end.
Definition of_embedding : R := if root_embedding f then ratio D D' else 1.
Definition of_head : R := if tied g then of_embedding else 1.

Definition heads := dealmap (rep d) (rep d') (copies g) (share g).
Definition qm := prodmap K K' heads place.
Definition kvm := kvmap K K' place.

(* w' is w times a, where w counts from `one` *)
Definition times_at n (e : nat -> nat) (a : R) (w w' : nat -> R) :=
  forall i, (i < n)%N -> one + w' (e i) = (one + w i) * a.
Definition writes_norm (a : R) (w w' : N) :=
  times_at D id a w.1 w'.1 /\ rpadded D D' id w.2 w'.2.
Definition writes_qk n n' e (a : R) (w w' : nat -> R) := match qk f with
  | NoNorm => True
  | OfHead => times_at K place (a * ratio K K') w w'
  | OfAll => times_at n e (a * ratio n n') w w'
  | LayerOfHead => times_at n e (a * ratio K K') w w'
  end.
Definition writes_feed (p p' : feed A) := match p, p' with
  | Dense p, Dense p' => mlp_scattered D D' F F' id ef p p'
  | Sparse s, Sparse s' => exists ee, experts_scattered D D' id ee s s'
  | _, _ => False
  end.
Definition centres_qk : bool := if qk f is LayerOfHead then (K < K')%N else false.

Record writes_layer (l l' : params) := WritesLayer {
  kind_at : of_kind l' = grow_kind (of_kind l);
  norm1_at : writes_norm of_norm (norm1 l) (norm1 l');
  norm2_at : writes_norm of_norm (norm2 l) (norm2 l');
  out1_at : writes_norm of_norm (out1 l) (out1 l');
  out2_at : writes_norm of_norm (out2 l) (out2 l');
  q_norm_at : writes_qk (qry d) (qry d') qm of_score (q_norm l) (q_norm l');
  k_norm_at : writes_qk kvs (kv d') kvm 1 (copied (copies g) K (k_norm l)) (k_norm l');
  attw_at : attn_dealt (A := A) d d' id place (copies g) (share g) ( *%R of_q)
    ( *%R of_k) (centre_qk d centres_qk (attw l)) (attw l');
  ffw_at : writes_feed (ffw l) (ffw l') }.

Definition zero_writer (p : mlp_weights A) :=
  (forall i u, (i < D')%N -> wd p i u = 0) /\ (forall i, (i < D')%N -> bd p i = 0).
Definition silent_params (l : params) :=
  [/\ forall i a, (i < D')%N -> wo (attw l) i a = 0,
      forall i, (i < D')%N -> bo (attw l) i = 0
    & match ffw l with
      | Dense p => zero_writer p
      | Sparse s => forall e, (e < many s)%N -> zero_writer (expert s e)
      end].

Record writes V T (k k' : weights) := Writes {
  embedding_at : forall v, (v < V)%N ->
    rpadded D D' id (fun i => embedding k v i * of_embedding) (embedding k' v);
  wpe_at : match wpe k, wpe k' with
    | Some q, Some q' => forall t, (t < T)%N -> rpadded D D' id (q t) (q' t)
    | None, None => True | _, _ => False end;
  blocks_at : deeper writes_layer silent_params (blocks k) (blocks k');
  last_norm_at : writes_norm (of_norm / of_head) (last_norm k) (last_norm k');
  head_w_at : forall v i, (v < V)%N -> (i < D)%N ->
    head_w k' v i = head_w k v i * of_head;
  head_b_at : forall v, (v < V)%N -> head_b k' v = head_b k v }.

(* One such k': new entries zero, but for those of norms that count from `one`. *)
Variable more : nat. (* neurons of an expert *)
Definition grow_vec n e (a : R) (w : nat -> R) : nat -> R :=
  @pad A n e (fun i => (one + w i) * a - one).
Definition grow_norm a (w : N) : N := (grow_vec D id a w.1, @pad A D id w.2).
Definition grow_qk n n' e (a : R) (w : nat -> R) := match qk f with
  | NoNorm => w
  | OfHead => grow_vec K place (a * ratio K K') w
  | OfAll => grow_vec n e (a * ratio n n') w
  | LayerOfHead => grow_vec n e (a * ratio K K') w
  end.
Definition grow_attn (p0 : attn A) : attn A := let p := centre_qk d centres_qk p0 in Attn
  (scatter (qry d) D qm id (fun o i => of_q * wq p o i : A))
  (pad (qry d) qm (fun o => of_q * bq p o : A))
  (scatter kvs D kvm id (fun o i => of_k * copied (copies g) K (wk p) o i : A))
  (pad kvs kvm (fun o => of_k * copied (copies g) K (bk p) o : A))
  (scatter kvs D kvm id (copied (copies g) K (wv p)))
  (pad kvs kvm (copied (copies g) K (bv p)))
  (scatter D (qry d) id qm (wo p)) (pad D id (bo p)).
Definition grow_mlp n e (p : mlp_weights A) : mlp_weights A := MlpWeights
  (scatter n D e id (wg p)) (pad n e (bg p)) (scatter n D e id (wu p)) (pad n e (bu p))
  (scatter D n id e (wd p)) (pad D id (bd p)).
Definition grow_feed (p : feed A) : feed A := match p with
  | Dense p => Dense (grow_mlp F ef p)
  | Sparse s => Sparse (Experts (many s) (width s + more) (route s)
      (scatter (many s) D id id (wr s)) (fun e => grow_mlp (width s) id (expert s e)))
  end.
Definition grow_params (l : params) : params := Params (A := A) (grow_kind (of_kind l))
  (grow_norm of_norm (norm1 l)) (grow_norm of_norm (norm2 l))
  (grow_norm of_norm (out1 l)) (grow_norm of_norm (out2 l))
  (grow_qk (qry d) (qry d') qm of_score (q_norm l))
  (grow_qk kvs (kv d') kvm 1 (copied (copies g) K (k_norm l)))
  (grow_attn (attw l)) (grow_feed (ffw l)).
Definition grow_weights (k : weights) s : weights := Weights (A := A)
  (fun v => @pad A D id (fun i => embedding k v i * of_embedding))
  (omap (fun q t => @pad A D id (q t)) (wpe k)) s
  (grow_norm (of_norm / of_head) (last_norm k))
  (fun v => @pad A D id (fun i => head_w k v i * of_head)) (head_b k).

Hypothesis gP : possible c g.
Let D_le : (D <= D')%N := hid_fits gP.

Lemma place_emb : emb K K' place.
Proof.
have [_ _ _ K_gt0] := sizes_gt0 gP; have K_le := lane_fits gP.
have K'_gt0 := leq_trans K_gt0 K_le.
have := lanes_fitP gP; rewrite /lanes_fit /Written.place; case: lanes => [_ _|/andP[K_even]].
  exact: emb_id.
case: between => [/dvdnP[m K'E]|K'_even].
  have m_gt0 : (0 < m)%N by move: K'_gt0; rewrite K'E muln_gt0 => /andP[].
  by rewrite K'E mulnK //; have [] := between_map m_gt0 K_even.
by have [] := rotary_halves_map K_even K'_even K_le.
Qed.

Lemma heads_emb : emb (hds d) (hds d') heads.
Proof. exact: (dealt_map (copies_fit gP) (shares_hold gP) (shares_fit gP)).1. Qed.

Lemma qm_emb : emb (qry d) (qry d') qm.
Proof. exact: prodmap_emb heads_emb place_emb. Qed.

Lemma kvm_emb : emb kvs (kv d') kvm.
Proof. exact: prodmap_emb (emb_id (copies_fit gP)) place_emb. Qed.

Lemma grow_vec_at n n' e a w : emb n n' e -> times_at n e a w (grow_vec n e a w).
Proof. by move=> eP i i_lt; rewrite /grow_vec (pad_at _ eP) // [LHS]addrC subrK. Qed.

Lemma pad_rpadded n n' e (x : nat -> R) : emb n n' e -> rpadded n n' e x (@pad A n e x).
Proof. by move=> eP; apply/(padE _ _ eP). Qed.

Lemma grow_norm_at a w : writes_norm a w (grow_norm a w).
Proof.
by split; [apply/(grow_vec_at _ _ (emb_id D_le)) | apply/pad_rpadded/emb_id].
Qed.

Lemma grow_mlp_at n n' e p : emb n n' e ->
  mlp_scattered D D' n n' id e p (grow_mlp n e p).
Proof.
move=> eP; have idP := emb_id D_le.
by split; try (by apply: pad_rpadded); apply: scatterP.
Qed.

Lemma grow_params_at l : writes_layer l (grow_params l).
Proof.
have eP := place_emb; have idP := emb_id D_le; have qP := qm_emb; have kvP := kvm_emb.
split=> //=; try exact: grow_norm_at.
- rewrite /writes_qk /grow_qk; case: qk => //; first exact: grow_vec_at eP.
    exact: grow_vec_at qP.
  exact: grow_vec_at qP.
- rewrite /writes_qk /grow_qk; case: qk => //; first exact: grow_vec_at eP.
    exact: grow_vec_at kvP.
  exact: grow_vec_at kvP.
- by split; try (by apply: pad_rpadded); apply: scatterP.
case: ffw => [p|s] /=; first exact/grow_mlp_at/(mlp_fits gP).
exists id; split=> //=; first exact/emb_id/leq_addr.
  exact: scatterP.
by move=> e _; apply/grow_mlp_at/emb_id/leq_addr.
Qed.

(** MAIN 8 written_by_growing: What the grower writes can be written: every checkpoint
    grown entry by entry, any silent layers added anywhere, is such a one, and its head
    is its embedding where the old one's was. *)
Theorem written_by_growing V T k s :
  deeper (fun l l' => l' = grow_params l) silent_params (blocks k) s ->
  writes V T k (grow_weights k s)
  /\ (tied g -> head_w k = embedding k ->
      head_w (grow_weights k s) = embedding (grow_weights k s)).
Proof.
move=> sP; have idP := emb_id D_le; split=> [|tiedE kE]; last first.
  by rewrite /= kE /of_head tiedE.
split=> //=.
- by move=> v _; apply: pad_rpadded.
- by case: (wpe k) => //= q t _; apply: pad_rpadded.
- rewrite -(map_id (blocks k)) -(map_id s).
  apply: (deeper_map (Q := fun=> True)) sP => [l l' _ ->|//|].
    exact: grow_params_at.
  exact/List.Forall_forall.
- exact: grow_norm_at.
by move=> v i _ i_lt; rewrite (pad_at _ idP).
Qed.

End Written.
